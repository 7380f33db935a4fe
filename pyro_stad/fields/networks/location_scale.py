r"""The whitening that depends on a context: mean and Cholesky factor of a normal law given it.

.. math:: \theta = \mu(c) + L(c)\, x, \qquad \mu(c) = A \tilde c + b + S\, m(c), \qquad
    L(c) = S\, (\mathrm{diag}(e^{s(c)}) + N(c)),

with A, b and S of the least-squares fit, and m, s and the strictly lower N by a perceptron that is
zero at the start. What a conditional flow has to learn is then near N(0, I) whatever the context:
a simulator of little noise has a law that is narrow, and elsewhere for every context, which no
fixed whitening resolves.

References:
    Papamakarios and Murray (2016), Fast epsilon-free Inference of Simulation Models with Bayesian
    Conditional Density Estimation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_stad.fields.networks.conditional import Perceptron

__all__ = ["LocationScale"]

# Numbers of a triangle grow with the square of D, and so does what samples must tell.
_MOST_FULL = 24
# Of the logarithm of a scale: what a network says beyond is a slip.
_MOST_LOG = 8.0


class LocationScale(nn.Module):
    """Mean and Cholesky factor, given a context.

    Arguments:
        features: dimension D of a point.
        context: dimension C of a context, standardised.
        width: units of the hidden layers.
        generator: source of the first weights, or None for torch's global one.

    Attributes:
        slope, intercept, factor: A ``(D, C)``, b ``(D,)`` and S ``(D, D)``; those of N(0, I).
    """

    slope: Tensor
    intercept: Tensor
    factor: Tensor

    def __init__(
        self, features: int, context: int, width: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.features, self.context, self.width = features, context, width
        self.below = features * (features - 1) // 2 if features <= _MOST_FULL else 0
        self.network = Perceptron(context, width, 2 * features + self.below, generator)
        nn.init.zeros_(self.network.out.weight)
        nn.init.zeros_(self.network.out.bias)
        self.register_buffer("slope", torch.zeros(features, context))
        self.register_buffer("intercept", torch.zeros(features))
        self.register_buffer("factor", torch.eye(features))

    def settings(self) -> dict[str, Any]:
        return {"width": self.width}

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return means ``(B, D)`` and lower Cholesky factors ``(B, D, D)`` given ``(B, C)``."""
        shift, log_scale, below = self.network(context).split(
            [self.features, self.features, self.below], dim=-1
        )
        triangle = torch.diag_embed(log_scale.clamp(-_MOST_LOG, _MOST_LOG).exp())
        if self.below:
            rows, columns = torch.tril_indices(self.features, self.features, -1).to(below.device)
            under = torch.zeros_like(triangle)
            under[..., rows, columns] = below
            triangle = triangle + under
        loc = self.intercept + context @ self.slope.mT + shift @ self.factor.mT
        return loc, self.factor @ triangle
