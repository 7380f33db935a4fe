"""The picture of ``pyro-stad check``: samples and draws, errors of the density, Stein residuals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad.calibrate import Audit
from pyro_stad.report import Goodness

__all__ = ["draw_picture", "most_different"]

_MOST_COLUMNS, _BINS = 6, 30
_SAMPLES, _DRAWS = "#c1440e", "#2b5c9e"


def draw_picture(
    path: Path,
    found: tuple[Audit, Goodness],
    errors: tuple[Tensor, Tensor],
    clouds: tuple[Tensor, Tensor],
    names: tuple[str, ...],
) -> None:
    """Write the picture of a check.

    Arguments:
        path: where to.
        found: the audit and the goodness of fit.
        errors: exact log-densities and the errors of log_prob, each with shape ``(N,)``.
        clouds: samples and draws with shapes ``(N, D)`` and ``(M, D)``, of the D parameters.
        names: of the parameters.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError("--figure needs matplotlib: pip install matplotlib") from missing
    chosen = most_different(*clouds)
    height = 1.5 + 1.5 * len(chosen)
    sheet = Figure(figsize=(10, 4 + height), layout="constrained")
    top, below = sheet.subfigures(2, 1, squeeze=False, height_ratios=[height, 4])[:, 0]
    _draw_corner(top, found[1], [cloud[:, chosen] for cloud in clouds], [names[i] for i in chosen])
    left, right = below.subplots(1, 2)
    _draw_errors(left, found[0], *errors)
    _draw_stein(right, found[0])
    sheet.savefig(path, dpi=130)


def most_different(first: Tensor, second: Tensor) -> list[int]:
    """Return the columns to draw, all or six: those where two clouds differ most come first.

    By the largest difference of their distribution functions (Kolmogorov and Smirnov).
    """
    if first.shape[1] <= _MOST_COLUMNS:
        return list(range(first.shape[1]))
    at = torch.cat([first, second]).mT.contiguous()
    shares = [
        torch.searchsorted(cloud.sort(dim=0).values.mT.contiguous(), at, right=True) / len(cloud)
        for cloud in (first, second)
    ]
    distance = (shares[0] - shares[1]).abs().amax(1)
    return distance.argsort(descending=True, stable=True)[:_MOST_COLUMNS].tolist()


def _draw_corner(place: Any, goodness: Goodness, clouds: list[Tensor], names: list[str]) -> None:
    size = len(names)
    axes = place.subplots(size, size, squeeze=False)
    # As many points of each, or the one that has more would look the wider.
    count = min(map(len, clouds))
    samples, draws = (cloud[:count].cpu().numpy() for cloud in clouds)
    for row in range(size):
        for column in range(size):
            here = axes[row, column]
            here.tick_params(labelsize=7)
            if column > row:
                here.axis("off")
                continue
            if column == row:
                _draw_marginal(here, samples[:, row], draws[:, row])
                here.set_yticks([])
            else:
                for cloud, colour in ((samples, _SAMPLES), (draws, _DRAWS)):
                    here.plot(
                        cloud[:, column], cloud[:, row], ".", markersize=4, alpha=0.5,
                        color=colour, markeredgewidth=0, rasterized=True,
                    )  # fmt: skip
            if row == size - 1:
                here.set_xlabel(names[column], fontsize=9)
            else:
                here.set_xticklabels([])
            if column == 0 and row > 0:
                here.set_ylabel(names[row], fontsize=9)
            else:
                here.set_yticklabels([])
    for label, colour in ((f"samples ({count})", _SAMPLES), (f"draws ({count})", _DRAWS)):
        axes[0, 0].plot([], [], color=colour, label=label)
    place.legend(loc="upper right", fontsize=10)
    place.suptitle(_title(goodness), fontsize=10)


def _draw_marginal(here: Any, samples: Any, draws: Any) -> None:
    edges = (min(samples.min(), draws.min()), max(samples.max(), draws.max()))
    for values, colour in ((samples, _SAMPLES), (draws, _DRAWS)):
        here.hist(values, bins=_BINS, range=edges, histtype="step", density=True, color=colour)


def _title(goodness: Goodness) -> str:
    title = f"held-out log-density {goodness.over_normal.text()} a multivariate normal's"
    if goodness.draws is not None:
        title += f"\nsamples against draws: p = {goodness.draws.p_value:.2g}"
    return title


def _draw_errors(here: Any, audit: Audit, exact: Tensor, error: Tensor) -> None:
    here.axhline(0, color="black", linewidth=0.8)
    here.plot(exact, error, ".", markersize=3, color="#0b6e4f")
    here.set_xlabel("exact log-density (whitened), nat")
    here.set_ylabel("log_prob less exact trace, nat")
    here.set_title(f"bias {audit.bias:+.3f}, sd {audit.sd:.3f} nat", fontsize=10)


def _draw_stein(here: Any, audit: Audit) -> None:
    here.axhline(0, color="black", linewidth=0.8)
    here.errorbar(
        [s.fraction for s in audit.stein],
        [s.mean for s in audit.stein],
        [2 * s.standard_error for s in audit.stein],
        fmt="o",
        color="#2b5c9e",
        capsize=3,
    )
    here.set_xlabel("fraction of the way from data to noise")
    here.set_ylabel("Stein residual (bars: 2 standard errors)")
    here.set_title(
        f"normaliser {audit.normaliser:.3f} +- {audit.normaliser_error:.3f}", fontsize=10
    )
