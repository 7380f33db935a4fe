"""Priors made from a prior: moved, calibrated, cut, with another way to the density; and saved."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from pyro_stad._context import own_context
from pyro_stad.calibrate import Calibration
from pyro_stad.density.calibrated import calibrated
from pyro_stad.density.sampling import Drawn
from pyro_stad.density.transform import check_likelihood
from pyro_stad.density.truncated import Region, TruncatedPrior, truncate
from pyro_stad.files import StoredPrior, write
from pyro_stad.likelihood import AbstractLikelihood, exact_twin
from pyro_stad.transport import AbstractInvertible

__all__ = ["Remade"]


class Remade(Drawn):
    """The part of a prior that makes others of it."""

    def truncate(self, region: Region, *, seed: int = 0) -> TruncatedPrior:
        """Return the prior kept to a region, and normalised there.

        Arguments:
            region: a function from tensors by variable, as ``unpack`` gives them, to a bool tensor
                that says which points are inside: ``lambda t: t["w0"] + t["wa"] < 0``.
            seed: of the 100,000 draws from which the mass inside is counted.

        Raises:
            TypeError: if ``region`` is no function, or does not return a bool tensor.
            ValueError: if no draw of the prior is inside, or for a wrong shape.
        """
        return truncate(self, region, seed)

    @own_context()
    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """Return a copy on another device or in another dtype; the batch shape is kept."""
        # A module moves itself; one copy of all, for transport and likelihood share a field.
        likelihood, transport = copy.deepcopy((self.likelihood, self.transport))
        new = self.like_this(
            lambda part: copy.deepcopy(part).to(target), likelihood.to(target),
            transport.to(target), self.calibration,
        )  # fmt: skip
        new = new.expand(self.batch_shape) if self.batch_shape else new
        new._validate_args = self._validate_args
        return new

    def with_likelihood(self, likelihood: AbstractLikelihood) -> Self:
        """Return a prior with the same whitening, names and bounds, and another likelihood.

        It comes without a calibration: what was measured was the other one. This is the way to
        another divergence, solver or estimator, such as
        ``prior.with_likelihood(FlowODE.of(prior.likelihood, divergence=Hutchinson(4)))``. Draws are
        made as before, but for those of another field.
        """
        check_likelihood(likelihood, self.like.shape)
        if likelihood.field is self.likelihood.field:
            return self.like_this(lambda part: part, likelihood, self.transport, None)
        # The spread is that of the members of this flow.
        return self.like_this(
            lambda part: part, likelihood, likelihood.transport(), None, spread=None, sampling=None
        )

    def exact(self) -> Self:
        """Return the exact twin: the same flow, with the exact trace on the density's own grid.

        That is what all other ways to the density are calibrated against.
        """
        twin = self.with_likelihood(exact_twin(self.likelihood))
        return twin.expand(self.batch_shape) if self.batch_shape else twin

    def like_this(
        self,
        moved: Callable[[Any], Any],
        likelihood: AbstractLikelihood,
        transport: AbstractInvertible,
        calibration: Calibration | None,
        **changed: Any,
    ) -> Self:
        """Return a prior with the same other parts, each ``moved``, but for those ``changed``."""
        old = self.stored()
        others = ("loc", "scale_tril", "margins", "reference", "spread")
        parts: dict[str, Any] = {name: getattr(old, name) for name in others}
        parts = {name: part if part is None else moved(part) for name, part in parts.items()}
        parts |= {"likelihood": likelihood, "transport": transport, "calibration": calibration}
        new = type(self)(**{**old._asdict(), **parts, **changed})
        new._validate_args = self._validate_args
        return new

    @own_context()
    def calibrate(
        self,
        samples: Tensor,
        *,
        tolerance: float | None = None,
        reference: str = "data",
        seed: int = 0,
        products: int | None = None,
    ) -> Self:
        """Return a prior whose density is the cheapest that is accurate enough on ``samples``.

        ``fit`` has done this on samples that it held out; do it again for another tolerance, or
        for samples from where the prior will be used.

        Arguments:
            samples: points with shape ``(N, D)``, at least 20, which the fit has not seen.
            tolerance: largest standard deviation of log_prob against the exact trace, in nats;
                None as in ``FitSettings``.
            reference: ``"data"`` also takes a density that describes the samples as well as the
                exact trace does, to ``tolerance ** 2 / 2`` nat in the mean and to its error, at
                the most as much again; ``"exact"`` does not.
            seed: of everything random.
            products: Jacobian-vector products for each call of the network, where an exact trace,
                which takes one for every dimension, is too dear. The trace is then sampled, and
                its noise is known and taken off. With it, and for images, a few dozen samples are
                enough: nobody looks for bumps, and ``reference`` is ``"exact"``.

        Raises:
            TypeError, ValueError: for samples that can't be used, or no positive tolerance.

        Warns:
            AccuracyWarning: if the tolerance is not met, or the normaliser is off.
        """
        return calibrated(self, samples, tolerance, reference, seed, products)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prior to ``path``; see ``pyro_stad.load``."""
        write(self.stored(), path)

    def stored(self) -> StoredPrior:
        """Return what the prior consists of."""
        affine = self.transforms[1]
        return StoredPrior(
            self.likelihood, affine.loc, affine.scale_tril, self.layout, self.bounds, self.report,
            self.calibration, self.transport, self.margins, self.reference, self.spread,
            self.sampling,
        )  # fmt: skip
