"""What a method is: an estimator with its options, as an object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from pyro_stad._checks import check_count
from pyro_stad.evidence.job import EvidenceJob
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.registry import registered

__all__ = ["METHODS", "AbstractMethod", "AbstractParticleMethod", "method_of", "takes"]


class AbstractMethod(ABC):
    """An estimator of the evidence; leaves are frozen dataclasses of its options.

    Class attributes:
        is_checked: whether its particles are held against importance sampling from them.
    """

    is_checked: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, job: EvidenceJob) -> EvidenceResult:
        """Estimate the evidence of a job.

        Raises:
            EvidenceError: if an estimate can't be believed.
        """


@dataclass(frozen=True)
class AbstractParticleMethod(AbstractMethod):
    """A method of several independent runs.

    Arguments:
        particles: particles, live points or draws N of each run.
        repeats: runs R, whose spread is the error.
    """

    particles: int = 1000
    repeats: int = 4

    def __post_init__(self) -> None:
        check_count(self.particles, "particles", least=100)
        check_count(self.repeats, "repeats", least=2)


METHODS: Mapping[str, type[AbstractMethod]] = registered("evidence method")


def method_of(name: str, options: Mapping[str, Any]) -> AbstractMethod:
    """Return the method of a name, with those of ``options`` that it has."""
    kind: Any = METHODS[name]
    return kind(**{f.name: options[f.name] for f in fields(kind) if f.name in options})


def takes(name: str, option: str) -> bool:
    """Whether the method of a name has an option."""
    kind: Any = METHODS[name]
    return option in {f.name for f in fields(kind)}
