"""What a prior says of how far to believe it at a point: how far out, how probable, how exact.

And how well it has been learned there. All go through the images of a point in the whitened
coordinates of the flow, of which an angle has several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._checks import check_value
from pyro_stad._events import beside
from pyro_stad.calibrate import Calibration
from pyro_stad.calibrate.suspects import disagreement
from pyro_stad.data.reference import Reference
from pyro_stad.density.alarm import FLAGGED, alarm_level, noise_tail
from pyro_stad.density.level import Levels
from pyro_stad.learn.spread import Spread
from pyro_stad.likelihood import AbstractLikelihood
from pyro_stad.transport import AbstractInvertible

__all__ = ["Extrapolation", "Learned", "Trusted", "extrapolation", "is_extrapolated"]


def is_extrapolated(prior: Trusted, noise: Tensor, white: Tensor) -> Tensor:
    """Return which rows of noise ``(B, D)`` make points that are far out, or of hardly any density.

    Either alarm counts: see ``tail_probability`` and ``density_level``. The points are known,
    whitened, as ``white``.
    """
    with torch.no_grad():
        alarm = prior.alarm_level
        return (noise_tail(noise) < alarm) | (prior.levels.share(white) < alarm)


class Extrapolation(NamedTuple):
    """How many of some draws are where a prior extrapolates, and how many may be.

    Attributes:
        share: share of the draws; of several draws of a prior, as in a plate, that of the one with
            the largest: each of them is far out now and then.
        tolerated: ten times what is expected of the prior's own draws, or five standard errors
            more than that, where they are few.
    """

    share: float = 0.0
    tolerated: float = 10 * FLAGGED

    @property
    def too_many(self) -> bool:
        """Whether more are there than may be."""
        return self.share > self.tolerated


def extrapolation(level: float, flagged: Tensor) -> Extrapolation:
    """Return how many draws were ``flagged``, shape ``(N, ...)``, by an alarm of that level."""
    each = flagged.reshape(len(flagged), -1).double().mean(0)
    by_chance = level + 5 * math.sqrt(level / max(len(flagged), 1))
    return Extrapolation(each.amax().item() if each.numel() else 0.0, max(10 * level, by_chance))


class Learned:
    """The part of a prior that knows the error of its learning."""

    spread: Spread | None

    def deviations(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return members' log-densities, less the prior's, and where there are any."""
        raise NotImplementedError

    def learning_error(self, value: Tensor, *, level: float | None = None) -> Tensor:
        """Return how far the flow may be from the law of the samples, shape ``(...)``, in nats.

        That is the standard error of ``log_prob``, known from the members of the fit: flows that
        were refitted to bootstrap resamples; see :mod:`pyro_stad.learn.spread`.

        Arguments:
            value: points with shape ``(..., *event_shape)``.
                Where there is no density, it is infinite.
            level: of a bound in place of the standard error, such as 0.9, by Student's law.

        Raises:
            ValueError: if the prior has no members, for a wrong shape or device, or a level that
                does not lie in (0, 1).

        References:
            Efron (1979), Bootstrap Methods: Another Look at the Jackknife.
        """
        deviations, there = self.deviations(value)
        error = self._known_spread().error(deviations, level)
        return torch.where(there, error, torch.inf)

    def learning_log_weights(self, value: Tensor) -> Tensor:
        """Return log-weights for the error of learning of expectations, shape ``(..., K)``.

        Reweighted by one of the K columns, draws of a posterior shift an expectation; the root of
        the sum of the squared shifts is its standard error by learning.

        Arguments:
            value: points with shape ``(..., *event_shape)``. Zero where there is no density.

        Raises:
            ValueError: if the prior has no members, or for a wrong shape or device.
        """
        return self._known_spread().log_weights(self.deviations(value)[0])

    def _known_spread(self) -> Spread:
        if self.spread is None:
            raise ValueError(
                "this prior knows no error of learning: it has no members. Fit it with `members`"
            )
        return self.spread


class Trusted(Learned):
    """The part of a prior that says how far to believe it."""

    likelihood: AbstractLikelihood
    transport: AbstractInvertible
    calibration: Calibration | None
    levels: Levels
    reference: Reference | None
    stand_in: Tensor

    # What the prior provides.
    inside: Callable[[Tensor], Tensor]
    images: Callable[[Tensor], tuple[Tensor, Tensor]]

    @property
    def alarm_level(self) -> float:
        """The chance below which ``tail_probability`` or ``density_level`` is an alarm.

        It is a thousandth, or the share that five of the samples make up, if that is more: the
        fewer samples there were, the sooner a flow begins to guess.
        """
        return FLAGGED if self.reference is None else alarm_level(self.reference.effective)

    def tail_probability(self, value: Tensor) -> Tensor:
        """Return how far out ``value`` lies, shape ``(...)``: the chance of a larger noise norm.

        Values below ``alarm_level`` mean that the network has hardly seen such points; the
        distilled divergence, and with it ``log_prob``, is not to be trusted there.

        Arguments:
            value: points with shape ``(..., *event_shape)``.
                What has no density is beyond everything: zero.
        """
        return self._best_image(value, lambda white: noise_tail(self.transport.pull(white)))

    def density_level(self, value: Tensor) -> Tensor:
        """Return the share of the prior's own draws with less density than ``value``: ``(...)``.

        By densities in whitened coordinates, so that no units matter. Values below ``alarm_level``
        mean that ``value`` is off the samples, be it far out, in the hollow of a ridge or between
        modes, where ``tail_probability`` sees nothing. Of 4,096 draws.

        Arguments:
            value: points with shape ``(..., *event_shape)``.
                What has no density has the level zero.
        """
        return self._best_image(value, self.levels.share)

    def surrogate_error(self, value: Tensor) -> Tensor:
        """Return a bound on the error of ``log_prob``, shape ``(...)``, in nats.

        It bounds the difference from the exact trace of the same flow, for 95 percent of data like
        those of the calibration, and grows where two ways to the density disagree. How far the flow
        itself is from the law of the samples, ``learning_error`` says.

        Arguments:
            value: points with shape ``(..., *event_shape)``.
                Outside the bounds the bound is infinite.

        Raises:
            ValueError: if the prior is not calibrated, or for a wrong shape or device.
        """
        if self.calibration is None:
            raise ValueError("this prior is not calibrated; use prior.calibrate(samples)")
        x = self._as_rows(value)
        with torch.no_grad():
            white, share = self.images(x)
            difference = disagreement(self.likelihood, white.flatten(0, 1)).reshape(share.shape)
            bounds = self.calibration.bound.at(difference)
            bound = torch.where(share > 0, share * bounds, 0.0).sum(0)
            # Where log_prob is -inf, nothing is known.
            bound = torch.where(self.inside(x) & torch.isfinite(bound), bound, torch.inf)
        return bound.reshape(self._batch(value))

    def deviations(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return members' log-densities, less the prior's, ``(..., K)``, and where there are any.

        Zero elsewhere.

        Raises:
            ValueError: if the prior has no members, or for a wrong shape or device.
        """
        spread, x = self._known_spread(), self._as_rows(value)
        with torch.no_grad():
            inside = self.inside(x)
            white, share = self.images(torch.where(beside(inside, x), x, self.stand_in))
            each = spread(white.flatten(0, 1)).reshape(*share.shape, spread.members)
            # Of an angle, the density is the sum over images.
            found = each[0] if len(each) == 1 else (each + share.log()[..., None]).logsumexp(0)
            there = inside & torch.isfinite(found).all(-1)
            found = torch.where(there[:, None], found, 0.0)
        shape = self._batch(value)
        return found.reshape(*shape, spread.members), there.reshape(shape)

    def _best_image(self, value: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a measure of whitened points ``(B, D)`` at ``value``: zero where there is none."""
        x = self._as_rows(value)
        with torch.no_grad():
            inside = self.inside(x)
            white, share = self.images(torch.where(beside(inside, x), x, self.stand_in))
            found = measure(white.flatten(0, 1)).reshape(share.shape)
            # Of an angle's images, the one that was seen best.
            found = torch.where(share > 0, found, 0.0).amax(0)
            found = torch.where(inside & ~torch.isnan(found), found, 0.0)
        return found.reshape(self._batch(value))

    def _as_rows(self, value: Tensor) -> Tensor:
        """Return points ``(..., *event_shape)`` as rows ``(B, *event_shape)``."""
        return check_value(value, self.stand_in).reshape(-1, *self.stand_in.shape)

    def _batch(self, value: Tensor) -> torch.Size:
        """Return the shape of points without that of an event."""
        return value.shape[: value.ndim - self.stand_in.ndim]
