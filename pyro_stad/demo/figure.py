"""The demonstration at a glance: a ridge, what each prior makes of it, and how wrong that is.

From left to right: what experiment A knows, and what the learned prior and a normal fit make of
it; what follows for K once B has spoken; and the errors of that in numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pyro_stad.demo.grid import Grid
from pyro_stad.demo.ridge import Ridge, grid_over, normal_fits

__all__ = ["draw"]

_BLACK, _GREEN, _RED, _ORANGE, _GREY = "#222222", "#0b8a5c", "#c0392b", "#d98e04", "#8a8a8a"
_SHARE = 0.9  # of the mass, inside a contour
_LEARNED = "learned prior, "
# Colour and label of every answer, from the worst to the best.
_ANSWERS = {
    "ignoring A": (_GREY, "B alone, ignoring A"),
    "multivariate normal": (_RED, "multivariate normal"),
    "log-normal": (_ORANGE, "log-normal"),
    f"{_LEARNED}evidence draws": (_GREEN, "learned: evidence draws"),
    f"{_LEARNED}auxiliary form": (_GREEN, "learned: NUTS, auxiliary"),
    f"{_LEARNED}x-space": (_GREEN, "learned: NUTS, x-space"),
}
_PEAK, _HALF = 0, 1  # columns of V and K
_DRAWS, _BINS = 200_000, 120


def draw(path: Path, ridge: Ridge) -> None:
    """Write the figure of the first part to ``path``.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the figure needs matplotlib: pip install 'pyro-stad[demo]'") from error
    figure = Figure(figsize=(14, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    _draw_ridge(left, ridge)
    _draw_marginals(middle, ridge)
    _draw_errors(right, ridge.summary)
    figure.savefig(path, dpi=120)


def _draw_ridge(axes: Any, ridge: Ridge) -> None:
    shown = ridge.posterior_a[:4000]
    points = {"color": _GREY, "markersize": 1.6, "alpha": 0.45}
    axes.plot(shown[:, _PEAK], shown[:, _HALF], ".", **points)
    _contour(axes, _learned_plane(ridge), _GREEN, linewidths=2.0)
    fits = normal_fits(ridge.posterior_a)
    _contour(axes, _plane(grid_over(fits["multivariate normal"])), _RED, linewidths=1.8)
    truth, _ = ridge.grids["truth"].moments()
    axes.plot(truth[_PEAK], truth[_HALF], "*", color=_BLACK, markersize=13)
    for colour, label in (
        (_GREY, "experiment A: exact posterior draws"),
        (_GREEN, "draws of the learned prior, 90%"),
        (_RED, "multivariate normal cut at 0, 90%"),
    ):
        axes.plot([], [], "o" if colour == _GREY else "-", color=colour, label=label)
    axes.plot([], [], "*", color=_BLACK, markersize=11, label="where B will put it")
    axes.set_xlim(0, 1000)
    axes.set_ylim(0, 0.6)
    axes.set_xlabel("V, largest rate")
    axes.set_ylabel("K, concentration at half of it")
    axes.set_title("1. What four measurements know: a curved ridge", loc="left", fontsize=11)
    axes.legend(fontsize=8.5, loc="upper left")


def _draw_marginals(axes: Any, ridge: Ridge) -> None:
    places, truth = _marginal(ridge.grids["truth"])
    axes.fill_between(places, truth, color="#d9d9d9", label="truth (grid)")
    axes.plot(places, truth, color=_BLACK, linewidth=1.2)
    for name in ("multivariate normal", "log-normal"):
        colour, label = _ANSWERS[name]
        axes.plot(*_marginal(ridge.grids[name]), color=colour, linewidth=1.8, label=label)
    edges = np.linspace(0.02, 0.14, 41)
    for style, (name, runs) in zip(("-", ":"), ridge.chains.items()):
        drawn = np.concatenate([chain.draws[:, _HALF] for chain in runs])
        options = {"density": True, "histtype": "step", "color": _GREEN, "linewidth": 1.6}
        axes.hist(drawn, edges, linestyle=style, label=_ANSWERS[name][1], **options)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, None)
    axes.set_yticks([])
    axes.set_xlabel("K, given A and B")
    axes.set_title("2. Add experiment B, by each prior", loc="left", fontsize=11)
    axes.legend(fontsize=8.5, loc="upper right")


def _draw_errors(axes: Any, summary: dict[str, Any]) -> None:
    heights = np.arange(len(_ANSWERS))
    shifts = [summary["answers"][name]["mean_error"][_HALF] for name in _ANSWERS]
    widths = [summary["answers"][name]["sd_error"][_HALF] for name in _ANSWERS]
    axes.axvspan(0, 0.1, color="#e0f1e9", zorder=0)
    axes.barh(heights, np.abs(shifts), color=[colour for colour, _ in _ANSWERS.values()])
    for height, shift, width in zip(heights, shifts, widths):
        text = f"{abs(shift):.2f} sd; width {width:+.0%}"
        axes.text(abs(shift) + 0.03, height, text, va="center", fontsize=9)
    axes.set_yticks(heights, [label for _, label in _ANSWERS.values()])
    axes.set_xlim(0, 1.75 * max(map(abs, shifts)))
    evidence = summary["evidence"]
    found = f"{evidence['log_z']:.2f} ± {evidence['log_z_err']:.2f}"
    by_normal = evidence["normal fits"]["multivariate normal"]
    axes.set_xlabel(
        "error of the mean of K, in posterior sds\n"
        f"log Z of B given A: truth {evidence['truth']:.2f},\n"
        f"learned prior {found}, normal {by_normal:.2f}"
    )
    axes.set_title("3. How wrong K is (band: 0.1 sd)", loc="left", fontsize=11)


def _marginal(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return values of K, and its density there."""
    places = grid.axes[_HALF].exp()
    return places.numpy(), (grid.marginal(_HALF) / places).numpy()


def _plane(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Return values of V and K, and their joint density, shape ``(len(V), len(K))``."""
    peak, half = grid.axes[_PEAK].exp(), grid.axes[_HALF].exp()
    return peak, half, grid.marginal(_PEAK, _HALF) / (peak[:, None] * half)


def _learned_plane(ridge: Ridge) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of draws from the learned prior, counted and smoothed in logarithms."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        drawn = ridge.prior.sample((_DRAWS,))[:, [_PEAK, _HALF]].log().double().numpy()
    counts, *edges = np.histogram2d(
        drawn[:, 0], drawn[:, 1], bins=_BINS, range=((3.5, 7.5), (-5.5, 0.5))
    )
    smooth = torch.as_tensor(gaussian_filter(counts, 2.0))
    peak, half = (torch.as_tensor(0.5 * (edge[1:] + edge[:-1])).exp() for edge in edges)
    return peak, half, smooth / (peak[:, None] * half)


def _contour(axes: Any, plane: tuple[Tensor, Tensor, Tensor], colour: str, **options: Any) -> None:
    """Draw the line of equal density that holds a share of the mass."""
    peak, half, density = plane
    # Even in logarithms: the mass of a point is its density times V times K.
    mass = (density * peak[:, None] * half).flatten()
    order = density.flatten().argsort(descending=True)
    held = mass[order].cumsum(0) / mass.sum()
    level = density.flatten()[order][int((held < _SHARE).sum())]
    values = (peak.numpy(), half.numpy(), density.mT.numpy())
    axes.contour(*values, levels=[level.item()], colors=[colour], **options)
