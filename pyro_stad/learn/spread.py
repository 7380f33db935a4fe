r"""The error of learning, at a point: how far members of a fit are from its flow.

With :math:`\delta_k(x) = \log p_k(x) - \log p(x)` for the K members of a fit
(:mod:`pyro_stad.learn.members`), by exact traces, the error of :math:`\log p` has about the
variance

.. math:: s^2(x) = \frac{\lambda^2}{K - 1} \sum_k \big(\delta_k(x) - \bar\delta(x)\big)^2,

:math:`\bar\delta` their mean, so that the error in units of s has Student's law with K - 1 degrees
of freedom. The factor :math:`\lambda` is for what all members share: one, or more where local
masses of samples and flow differ by more than the members say (:mod:`pyro_stad.density.typical`).

With :math:`c_k = \lambda\,(\delta_k - \bar\delta) / \sqrt{K - 1}`, an expectation shifts when draws
of the posterior are reweighted by :math:`\exp c_k`, and a log-evidence by the mean of :math:`c_k`,
to first order: at one point in thousands the network overshoots, and would decide on a mean of
exponentials. The root of the sum of the squared shifts is the error. So posteriors and evidences
that were made with the flow get their error of learning without another run.

Members are not kept. A small network learns all :math:`\delta_k` as functions of x, from points
where their exact traces are known: data, draws of the flow, and what lies between them and further
out, where members differ most. It is scaled to the spread of labels near data that it has not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.nn import functional

from pyro_stad._checks import check_count
from pyro_stad.fields.networks.perceptron import linear
from pyro_stad.learn.loop import History, train
from pyro_stad.learn.settings import TrainingSettings

__all__ = ["Labels", "Spread", "distil_spread", "joint_log_weights", "shifts"]

_HELD = 5  # of so many labels, one is held out
_LEAST_UNIT, _MOST_GAIN = 1e-4, 3.0
_NORMAL = 1.4826  # standard deviation of a normal law, over its median size


@dataclass(frozen=True)
class Labels:
    """Members' log-densities, less the flow's, at points.

    Attributes:
        points: whitened, with shape ``(N, D)``.
        deviations: with shape ``(N, K)``.
        is_near: which points are as near as data, shape ``(N,)``.
        is_draw: which points are the flow's own draws, shape ``(N,)``: there, members have to be
            normalised.
    """

    points: Tensor
    deviations: Tensor
    is_near: Tensor
    is_draw: Tensor


class Spread(nn.Module):
    r"""Deviations of members from a flow, as a network of whitened points.

    Arguments:
        features: dimension D of a point.
        members: their number K.
        width: units of both hidden layers.
        generator: source of the first weights, or None for torch's global one.

    Attributes:
        unit: typical deviation of each member near data, in nats, shape ``(K,)``.
        most: largest output that counts, ``(K,)``: no label was larger.
        log_mass: mean deviation of each member at the flow's draws, by the network, shape ``(K,)``:
            to first order, the logarithm of its mass.
        residual: spread that the network does not show, in nats, ``()``.
        factor: :math:`\lambda`, ``()``.
    """

    unit: Tensor
    most: Tensor
    log_mass: Tensor
    residual: Tensor
    factor: Tensor

    def __init__(
        self, features: int, members: int, width: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        for name, size in {"features": features, "width": width}.items():
            check_count(size, name)
        check_count(members, "members", least=2)
        self.features, self.members, self.width = features, members, width
        self.enter = linear(features, width, generator)
        self.link = linear(width, width, generator)
        self.out = linear(width, members, generator)
        for name, shape in (
            ("unit", members),
            ("most", members),
            ("log_mass", members),
            ("residual", ()),
            ("factor", ()),
        ):
            self.register_buffer(name, torch.zeros(shape))

    def raw(self, x: Tensor) -> Tensor:
        """Return the inverse hyperbolic sines of deviations in their units, ``(B, K)``.

        Far out deviations are large, and differ from point to point; there, their order of
        magnitude is learned.
        """
        h = functional.silu(self.enter(x))
        return self.out(functional.silu(self.link(h)))

    def forward(self, x: Tensor) -> Tensor:
        """Return members' log-densities, less the flow's, at whitened points: ``(B, K)``."""
        return self.nats(self.raw(x)) - self.log_mass

    def nats(self, raw: Tensor) -> Tensor:
        """Return deviations in nats from those that the network gives, ``(..., K)``."""
        return self.unit * torch.sinh(raw.clamp(-self.most, self.most))

    def log_weights(self, deviations: Tensor) -> Tensor:
        """Return the log-weights :math:`c_k` from deviations ``(..., K)``, of the same shape."""
        centred = deviations - deviations.mean(-1, keepdim=True)
        return self.factor / math.sqrt(self.members - 1) * centred

    def error(self, deviations: Tensor, level: float | None = None) -> Tensor:
        """Return the standard error of a log-density from deviations ``(..., K)``: ``(...)``.

        Or a bound that holds at a ``level``, by Student's law.

        Raises:
            ValueError: if the level does not lie in (0, 1).
        """
        if level is not None and not (isinstance(level, Real) and 0 < level < 1):
            raise ValueError(f"`level` must lie in (0, 1), or be None; got {level!r}")
        squares = self.log_weights(deviations).square().sum(-1)
        error = (squares + self.residual.square()).sqrt()
        if level is not None:
            error = error * float(stdtrit(self.members - 1, 0.5 + 0.5 * level))
        return error


def joint_log_weights(parts: list[tuple[Spread, Tensor]]) -> Tensor:
    """Return log-weights ``(N, K)`` of draws from the deviations of all their learned priors.

    Arguments:
        parts: spreads, with deviations ``(N, ..., K)`` of draws. Values of one prior, in a plate or
            at several sites, are off together; those of different priors by themselves.
    """
    sums: dict[int, Tensor] = {}
    spreads = {id(spread): spread for spread, _ in parts}
    for spread, deviations in parts:
        total = deviations.reshape(len(deviations), -1, spread.members).sum(1)
        sums[id(spread)] = sums.get(id(spread), torch.zeros_like(total)) + total
    return torch.cat([spreads[key].log_weights(total) for key, total in sums.items()], 1)


def shifts(log_weights: Tensor) -> Tensor:
    """Return how far log-evidences shift by log-weights ``(N, K)`` of posterior draws: ``(K,)``."""
    return log_weights.mean(0)


def distil_spread(
    labels: Labels, width: int, settings: TrainingSettings, first: torch.Generator, **options: Any
) -> tuple[Spread, History]:
    """Return a network of deviations, with the factor one, and its training.

    Arguments:
        labels: what it learns.
        width: units of its hidden layers.
        settings: how long and how hard.
        first: source of the first weights.
        options: passed on to ``pyro_stad.learn.train``.
    """
    points, deviations = labels.points, labels.deviations
    spread = Spread(points.shape[1], deviations.shape[1], width, first).to(points)
    near = deviations[labels.is_near]
    spread.unit.copy_((_NORMAL * near.abs().median(0).values).clamp_min(_LEAST_UNIT))
    wanted = torch.asinh(deviations / spread.unit)
    spread.most.copy_(wanted.abs().amax(0))
    held = torch.arange(len(points), device=points.device) % _HELD == 0
    known, known_wanted = points[~held], wanted[~held]

    def loss(module: Spread, source: torch.Generator) -> Tensor:
        shape = (settings.batch_size,)
        index = torch.randint(len(known), shape, generator=source, device=known.device)
        return functional.mse_loss(module.raw(known[index]), known_wanted[index])

    def validate(module: Spread) -> float:
        return functional.mse_loss(module.raw(points[held]), wanted[held]).item()

    history = train(spread, loss, validate, settings, **options)
    spread.requires_grad_(False)
    _rescale(spread, points[held & labels.is_near], deviations[held & labels.is_near])
    spread.log_mass.copy_(shifts(spread.nats(spread.raw(points[labels.is_draw]))))
    spread.factor.fill_(1.0)
    return spread, history


def _rescale(spread: Spread, points: Tensor, deviations: Tensor) -> None:
    """Give the network the spread of labels ``(N, K)`` that it has not seen.

    What a network learns in part, it makes too small, here by 1.2 to 1.7 times, and evidences would
    be too sure. By quantiles, since a few labels may be far off.
    """
    centred, found = (
        part - part.mean(1, keepdim=True) for part in (deviations, spread.nats(spread.raw(points)))
    )
    wanted, known = (part.abs().median() for part in (centred, found))
    gain = (wanted / known.clamp_min(_LEAST_UNIT)).clamp(1.0, _MOST_GAIN)
    spread.unit.mul_(gain)
    # What even the largest gain does not bring is noise to it, the same everywhere.
    rest = (wanted.square() - (gain * known).square()).clamp_min(0.0).sqrt()
    # About the mean of K, one of them is lost.
    spread.residual.copy_(_NORMAL * math.sqrt(spread.members / (spread.members - 1)) * rest)
