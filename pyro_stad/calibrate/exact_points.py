r"""What ways to a flow's density are held against: the exact trace, at data, draws and suspects.

Held-out data and the flow's own draws say how accurate a way is where the law is. They say nothing
of a bump beyond it or between its modes, which a likelihood would find, nor of a collapse that one
datum in a thousand sees. So each way is looked at, at thousands of *places*, where all that is
cheap is computed, and the most suspect of them get an exact trace:

- held-out data, all or thousands of them (:mod:`pyro_stad.calibrate.suspects`);
- *probes*: the flow's image of noise that is up to three times too wide, for it spreads over
  whatever the flow can reach; all directions, out to nine standard deviations beyond the cloud;
  and places on the straight lines between pairs of data, which pass between modes and through the
  hollows of bent ridges. There a way is held against the flow with its own divergence, and from
  where it exceeds that most, its bumps are climbed.

With e the error of a way in nats, mass divided out,

- a *bump* is the largest e at a place that the way gives a density as high as the flow's own draws
  have, all but one in two hundred: its excess over that level, or over the exact trace, whichever
  is less. Below the level it is no matter, for there a density is flagged as extrapolated.
- a *collapse* is what the log score loses to the places among the data that are three nats too low
  or more: the sum of -e over them, divided by the number of data.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._joined import given, joined, log_prob_at, own_draws, parted
from pyro_stad.calibrate.audit import exact_log_prob, own_noise
from pyro_stad.calibrate.record import HIGHEST, Trial
from pyro_stad.calibrate.standard import Standard
from pyro_stad.calibrate.suspects import climbed, most_alone, suspects
from pyro_stad.data.batches import between
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.flow_ode import FlowODE, exact_twin
from pyro_stad.transport import Flow

__all__ = ["ExactPoints"]

_LEVEL = 0.005  # share of own draws with less density than what a bump has
_LOW = 3.0
_FOOT = 0.1  # of a bump, in nats: what exceeds the flow by less is not climbed
_PROBES, _MOST_DATA, _SUSPECTS = 1024, 5000, 24
_INFLATED = (1.5, 2.0, 3.0)
_REACH = 9.0  # beyond the root of D, the radius of a normal cloud


class ExactPoints(NamedTuple):
    """Points with their exact log-densities, and places to look at."""

    standard: Standard
    others: Tensor
    probes: Tensor
    flow: FlowODE
    at_probes: Tensor

    @staticmethod
    def of(
        likelihood: AbstractLikelihood,
        data: Tensor,
        others: Tensor | None,
        generator: torch.Generator,
    ) -> ExactPoints:
        """Return the standard for the flow of ``likelihood``; see ``calibrate``."""
        flow, exact = FlowODE.of(likelihood), exact_twin(likelihood)
        noise = own_noise(likelihood, data, generator)
        others = data if others is None else others[:: math.ceil(len(others) / _MOST_DATA)]
        with torch.no_grad():
            draws = own_draws(likelihood.transport(), noise, parted(data, likelihood)[1])
            probes = _probes(likelihood.transport(), others, generator)
            standard = Standard(data, log_prob_at(exact, data), draws, log_prob_at(exact, draws))
            at_probes = log_prob_at(flow, probes)
        return ExactPoints(standard, others, probes, flow, at_probes)

    def looked_over(self, way: AbstractLikelihood, trial: Trial) -> Trial:
        """Return the trial of a way with its highest bump and its collapse."""
        return replace(trial, bump=self._bump(way), collapse=self._collapse(way))

    def _bump(self, way: AbstractLikelihood) -> float:
        """Return the highest bump of a way, in nats; zero or less if there is none."""
        level = self.standard.at_draws.quantile(_LEVEL)

        def excess(by_way: Tensor, by_other: Tensor) -> Tensor:
            """Return by how much a way exceeds both the level and another: NaN is all too much."""
            found = torch.minimum(by_way - level, by_way - by_other)
            return torch.where(torch.isnan(found), math.inf, found)

        by_way = log_prob_at(way, self.probes)
        high = ~(by_way < level)
        above, highest = excess(by_way, self.at_probes).topk(_SUSPECTS)
        feet, at = self.probes[highest], self.probes[high]
        x = [feet]
        if len(at):
            x += suspects(way, at, _SUSPECTS), most_alone(at, self.others, _SUSPECTS)

        def bump(x: Tensor) -> float:
            return excess(log_prob_at(way, x), exact_log_prob(way, x)).max().item()

        found = bump(torch.cat(x))
        # What is refused already needs no climb; and by an exact divergence, slopes take minutes.
        if found > HIGHEST or above[0] <= _FOOT or way.divergence.is_exact:
            return found
        points, context = parted(feet, way)
        one, other = given(way, context), given(self.flow, context)
        top = climbed(lambda at: excess(one.log_prob(at), other.log_prob(at)), points)
        return max(found, bump(joined(top, context)))

    def _collapse(self, way: AbstractLikelihood) -> float:
        """Return what the score loses to data that are far too low, in nats a datum."""
        x = suspects(way, self.others, _SUSPECTS)
        low = exact_log_prob(way, x) - log_prob_at(way, x)
        low = torch.where(torch.isnan(low), math.inf, low)
        return low[low > _LOW].sum().item() / len(self.others)


def _probes(flow: Flow, data: Tensor, generator: torch.Generator) -> Tensor:
    """Return places off the bulk, with shape ``(B, D)``."""
    points, context = parted(data, flow)
    size, event = points[0].numel(), points.shape[1:]
    options: dict[str, Any] = {
        "generator": generator, "dtype": data.dtype, "device": data.device
    }  # fmt: skip
    noise = torch.randn(_PROBES, size, **options)
    scales = data.new_tensor(_INFLATED).repeat_interleave(_PROBES // len(_INFLATED) + 1)[:_PROBES]
    direction = torch.nn.functional.normalize(torch.randn(_PROBES, size, **options), dim=1)
    around = direction * (size**0.5 + _REACH) * torch.rand(_PROBES, 1, **options)
    wide = own_draws(flow, (noise * scales[:, None]).reshape(-1, *event), context)
    around = around.reshape(-1, *event)
    if context is not None:
        around = joined(around, context[torch.arange(_PROBES, device=data.device) % len(context)])
    return torch.cat([wide, around, between(data, _PROBES, generator)])
