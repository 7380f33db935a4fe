"""What can go wrong, as types."""

from __future__ import annotations

from typing import Any

__all__ = [
    "AccuracyWarning",
    "CheckpointError",
    "EvidenceError",
    "EvidenceWarning",
    "OutOfDistributionWarning",
    "SampleWarning",
    "TrainingError",
    "TrainingWarning",
]


class CheckpointError(ValueError):
    """A file is not a checkpoint of this package, or not the one that was written."""


class EvidenceError(RuntimeError):
    """An estimate of the evidence can't be believed.

    Attributes:
        result: the estimate, if one was made.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class EvidenceWarning(UserWarning):
    """Two estimates of an evidence disagree, or one is in doubt and stands alone."""


class SampleWarning(UserWarning):
    """The samples leave the density in doubt: they are few, discrete, or nearly dependent."""


class TrainingError(RuntimeError):
    """Training diverged before there was anything worth keeping."""


class TrainingWarning(UserWarning):
    """Training went on, or stopped early, after a numerical failure."""


class AccuracyWarning(TrainingWarning):
    """A prior is less accurate than was asked for, or does not describe its samples."""


class OutOfDistributionWarning(UserWarning):
    """A density was asked for where the model has seen no data."""
