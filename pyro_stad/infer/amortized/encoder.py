"""The network of one latent variable: from rows of data, and earlier draws, to an embedding.

.. code-block:: text

    rows of each argument -> embedded one by one -> mean over the plates that the variable is not in
    latent variables drawn before, in unbounded coordinates -> numbers
    all of it, joined -> trunk -> embedding -> posterior

The mean over members of an inner plate is the same in any order of them, and works for any number.

References:
    Zaheer et al. (2017), Deep Sets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Encoder", "RowEncoder", "perceptron"]


def perceptron(shape: torch.Size, width: int) -> nn.Module:
    """Return a network from rows of data ``(B, *shape)`` to embeddings ``(B, width)``."""
    size = max(1, shape.numel())
    return nn.Sequential(
        nn.Flatten(1), nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
    )


class RowEncoder(nn.Module):
    """One argument, standardised by the rows that it was made with, and embedded.

    Arguments:
        rows: those rows, ``(B, *shape)``.
        network: what maps rows to embeddings.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, rows: Tensor, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("loc", rows.mean(0))
        spread = rows.std(0) if len(rows) > 1 else torch.ones_like(rows[0])
        # What is the same in every row is left as it is: a pixel that is always dark.
        self.register_buffer("scale", torch.where(spread > 0, spread, torch.ones_like(spread)))

    def forward(self, rows: Tensor) -> Tensor:
        """Return embeddings ``(*batch, width)`` of rows ``(*batch, *shape)``."""
        batch = rows.shape[: rows.ndim - self.loc.ndim]
        flat = (rows.to(self.loc) - self.loc) / self.scale
        # A number in a row is a vector of one.
        flat = flat.reshape(-1, *(self.loc.shape or (1,)))
        return self.network(flat).reshape(*batch, -1)


class Encoder(nn.Module):
    """All that the posterior of one latent variable looks at.

    Arguments:
        rows: the encoders of arguments.
        upstream: how many numbers the earlier latent variables are.
        width: of the embedding.
    """

    def __init__(self, rows: list[RowEncoder], upstream: int, width: int) -> None:
        super().__init__()
        self.rows = nn.ModuleList(rows)
        self.trunk = nn.Sequential(
            nn.Linear(width * len(rows) + upstream, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
        )  # fmt: skip

    def forward(
        self, rows: list[Tensor], pool: Callable[[int, Tensor], Tensor], upstream: list[Tensor]
    ) -> Tensor:
        """Return the embedding, ``(*batch, width)``.

        Arguments:
            rows: of each argument, ``(*plates, *shape)``.
            pool: takes the place of an argument in the list, and its embeddings, to the mean over
                those plates that the variable is not in.
            upstream: numbers ``(*batch, n)`` of each earlier latent variable.
        """
        parts = [pool(i, network(x)) for i, (network, x) in enumerate(zip(self.rows, rows))]
        parts += [value.to(parts[0]) for value in upstream]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        joined = torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)
        return self.trunk(joined)
