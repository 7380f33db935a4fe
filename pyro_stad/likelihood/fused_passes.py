"""The passes of a fused Stein path: forward through trunk and head at all nodes, and back.

What they compute, and why it is that, is in :mod:`pyro_stad.likelihood.fused`.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from pyro_stad.divergence import TrunkHead
from pyro_stad.fields.gate import GateValues
from pyro_stad.fields.networks.perceptron import Trunk, gated_silu

__all__ = ["Layer", "Tables", "Weights", "backward_pass", "forward_pass", "weights_of"]


class Tables(NamedTuple):
    """What depends on the K nodes alone; W is the width, L the depth of the trunk."""

    biases: Tensor  # (K, L W)
    gates: Tensor  # (K, L W)
    turning: Tensor  # (K, L W); the last W, o, are weighted by sqrt(D) omega
    weights: Tensor  # (K, 1)
    cotangents: Tensor  # (K, 1)

    @torch.inference_mode(mode=False)
    def repeated(self, points: int) -> Tables:
        """Return the tables for several points."""
        return self if points == 1 else Tables(*(table.repeat(points, 1) for table in self))


class Weights(NamedTuple):
    """The matrices, to be multiplied by from the left."""

    enter: Tensor  # (D, L W)
    entering: Tensor  # (L W, D), its transpose, laid out so that rows do not see their places
    links: list[Tensor]
    couplings: list[Tensor]  # the head's links
    out: Tensor  # (W, D)
    out_bias: Tensor


class Layer(NamedTuple):
    """What the pass back needs of one layer, each ``(rows, W)``."""

    value: Tensor
    slope: Tensor
    sigmoid: Tensor
    factor: Tensor | None  # m, or None in the first layer, where it is one


def weights_of(trunk: Trunk, head: TrunkHead) -> Weights:
    """Return copies of the matrices: what is written to those of the networks is not in them."""
    links, couplings = (
        [cast(Tensor, link.weight).clone().mT for link in layers]
        for layers in (trunk.links, head.links)
    )
    enter, leave = trunk.enter.weight.clone().mT, trunk.out.weight.clone().mT
    # A product with few columns, as they lie in memory, takes kernels whose rounding depends on a
    # row's place in the batch; with columns that are contiguous it does not.
    entering = enter.contiguous().mT
    return Weights(enter, entering, links, couplings, leave, trunk.out.bias.clone())


def forward_pass(weights: Weights, tables: Tables, y: Tensor) -> tuple[Tensor, Tensor, list[Layer]]:
    """Return what a pass forward gives for rows ``y``, all of it without the gate.

    Returns:
        The weighted divergences, less their clock, ``(rows,)``; velocities; layers.
    """
    inputs = torch.addmm(tables.biases, y, weights.enter)
    depth = len(weights.links) + 1
    # Chunk, because split is a function in Python.
    terms, gates, turns = (
        part.chunk(depth, dim=-1) for part in (inputs, tables.gates, tables.turning)
    )
    h, slope, sigmoid = gated_silu(terms[0], gates[0])
    layers, coupled = [Layer(h, slope, sigmoid, None)], slope
    for index, (link, coupling) in enumerate(zip(weights.links, weights.couplings)):
        h, slope, sigmoid = gated_silu(torch.addmm(terms[index + 1], h, link), gates[index + 1])
        factor = torch.addmm(turns[index], coupled, coupling)
        layers.append(Layer(h, slope, sigmoid, factor))
        coupled = slope * factor
    velocity = torch.addmm(weights.out_bias, h, weights.out)
    return (coupled * turns[-1]).sum(-1), velocity, layers


def backward_pass(
    weights: Weights,
    tables: Tables,
    y: Tensor,
    velocity: Tensor,
    layers: list[Layer],
    gate: GateValues | None,
) -> Tensor:
    """Return the derivatives of the weighted integrand with respect to rows ``y``.

    Those by way of the gate, whose values are given for every row, are not among them.
    """
    pull, cotangents = tables.weights, tables.cotangents
    coupled = tables.turning[:, -weights.out.shape[0] :]
    toward = y
    if gate is not None:
        less = gate.value - 2 * gate.slope
        toward, pull = less * y, less * pull
        cotangents, coupled = gate.value.square() * cotangents, gate.value * coupled
    # Minus the derivative by the value of a layer, and the derivative by its coupled slopes.
    minus = torch.addcmul(toward, velocity, cotangents, value=2) * tables.weights
    minus = minus @ weights.out.mT
    deltas: list[Tensor] = []
    for index in reversed(range(len(layers))):
        value, slope, sigmoid, factor = layers[index]
        by_slope = coupled if factor is None else coupled * factor
        minus_bend = torch.sub(value, slope, alpha=2) * (1 - sigmoid)
        deltas.insert(0, torch.addcmul(minus * slope, by_slope, minus_bend))
        if index:
            minus = deltas[0] @ weights.links[index - 1].mT
            coupled = (coupled * slope) @ weights.couplings[index - 1].mT
    entering = torch.cat(deltas, dim=-1) @ weights.entering
    return -torch.addcmul(entering, pull, velocity)
