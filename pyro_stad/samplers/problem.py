"""What samplers are given: log-likelihoods of standard normal noise."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Problem"]


class Problem(Protocol):
    """Log-likelihoods of standard normal noise, of one object or of many.

    Attributes:
        objects: number B of data sets.
        size: number D of noise variables of each.
        like: a tensor of the noise's dtype and device.
        data: fingerprint of the data of each object.
        calls: likelihoods that were evaluated.
    """

    objects: int
    size: int
    like: Tensor
    data: tuple[str, ...]
    calls: int

    def of_objects(self, which: Tensor, u: Tensor) -> Tensor:
        """Return the log-likelihoods ``(b, N)`` of objects ``which``, ``(b,)``, at ``(b, N, D)``.

        They are less than infinity, and never NaN.
        """
        ...
