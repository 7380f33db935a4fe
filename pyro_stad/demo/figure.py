"""The demonstration at a glance: a ridge, what each prior makes of it, and how wrong that is.

From left to right: what experiment A knows, and what the learned prior and a normal fit make of
it; what follows for K once B has spoken; and the errors of that in numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter

from pyro_stad._random import forked
from pyro_stad.demo.grid import Grid
from pyro_stad.demo.ridge import Ridge, normal_fits

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
_DRAWS = 50_000  # of the learned prior, for its contour
_PEAK, _HALF = 0, 1  # columns of V and K


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
    axes.plot(shown[:, _PEAK], shown[:, _HALF], ".", color=_GREY, markersize=1.6, alpha=0.45)
    fit = normal_fits(ridge.posterior_a)["multivariate normal"]
    grid = Grid.over(fit, (1.0, 1e-6, 0.1), (1e5, 1e2, 1e3), (400, 400, 20))
    _contour(axes, _density(grid), _RED, linewidths=1.8)
    _contour(axes, _density_of_draws(ridge), _GREEN, linewidths=2.0)
    truth, _ = ridge.grids["truth"].moments()
    axes.plot(truth[_PEAK], truth[_HALF], "*", color=_BLACK, markersize=13)
    axes.plot([], [], "o", color=_GREY, markersize=4, label="exact posterior of A, draws")
    axes.plot([], [], color=_GREEN, label="learned prior, 90%")
    axes.plot([], [], color=_RED, label="multivariate normal, cut at 0, 90%")
    axes.plot([], [], "*", color=_BLACK, markersize=11, label="what A and B will say")
    axes.set_xlim(0, 1000)
    axes.set_ylim(0, 0.6)
    axes.set_xlabel("V, the largest rate")
    axes.set_ylabel("K, the concentration at half of it")
    axes.set_title("1. What four measurements (A) know: a curved ridge", loc="left", fontsize=11)
    axes.legend(fontsize=8.5, loc="upper left")


def _draw_marginals(axes: Any, ridge: Ridge) -> None:
    places = np.linspace(0.025, 0.13, 300)
    truth = _marginal(ridge.grids["truth"], places)
    axes.fill_between(places, truth, color="#d9d9d9", label="truth")
    axes.plot(places, truth, color=_BLACK, linewidth=1.0)
    for name in ("multivariate normal", "log-normal"):
        colour, label = _ANSWERS[name]
        axes.plot(places, _marginal(ridge.grids[name], places), color=colour, label=label)
    edges = np.linspace(places[0], places[-1], 29)
    for marker, (name, runs) in zip(("o", "D"), ridge.chains.items()):
        drawn = np.concatenate([chain.draws[:, _HALF] for chain in runs])
        heights, _ = np.histogram(drawn, edges)
        heights = heights / (len(drawn) * (edges[1] - edges[0]))
        fill = _GREEN if marker == "o" else "white"
        style = {"color": _GREEN, "markerfacecolor": fill, "markersize": 5, "linestyle": "none"}
        middles = (edges[1:] + edges[:-1]) / 2
        axes.plot(middles, heights, marker, label=_ANSWERS[name][1], **style)
    axes.set_xlim(places[0], places[-1])
    axes.set_ylim(0, None)
    axes.set_yticks([])
    axes.set_xlabel("K, given A and B")
    axes.set_ylabel("posterior density")
    axes.set_title("2. Add experiment B, by each prior", loc="left", fontsize=11)
    axes.legend(fontsize=8.5, loc="upper right")


def _draw_errors(axes: Any, summary: dict[str, Any]) -> None:
    heights = np.arange(len(_ANSWERS))
    shifts = [abs(summary["answers"][name]["mean_error"][_HALF]) for name in _ANSWERS]
    widths = [summary["answers"][name]["sd_error"][_HALF] for name in _ANSWERS]
    axes.axvspan(0, 0.1, color="#e0f1e9", zorder=0)
    axes.barh(heights, shifts, color=[colour for colour, _ in _ANSWERS.values()])
    for height, shift, width in zip(heights, shifts, widths):
        text = f"{shift:.2f} sd; width {width:+.0%}"
        axes.text(max(shift, 0.1) + 0.03, height, text, va="center", fontsize=9)
    axes.set_yticks(heights, [label for _, label in _ANSWERS.values()])
    axes.set_xlim(0, 1.75 * max(shifts))
    axes.set_xlabel("error of the mean of K, in posterior sds")
    axes.set_title("3. How wrong K is (band: 0.1 sd)", loc="left", fontsize=11)
    found = summary["evidence"]
    lines = {"truth": f"{found['truth']:.2f}"}
    lines["learned prior"] = f"{found['log_z']:.2f} ± {found['log_z_err']:.2f}"
    lines |= {name: f"{value:.2f}" for name, value in found["normal fits"].items()}
    text = "\n".join(["log Z of B given A", *(f"{name}: {z}" for name, z in lines.items())])
    box = {"facecolor": "white", "edgecolor": "#cccccc", "boxstyle": "round"}
    place = {"ha": "right", "va": "top", "transform": axes.transAxes}
    axes.text(0.98, 0.97, text, fontsize=8.5, linespacing=1.5, bbox=box, **place)


def _marginal(grid: Grid, places: np.ndarray) -> np.ndarray:
    """Return the density of K at ``places``, by a spline through its logarithm on the grid."""
    log_density = CubicSpline(grid.axes[_HALF], grid.marginal(_HALF).log())
    return np.exp(log_density(np.log(places))) / places


def _density(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the logarithms of V and K, and the density of these, ``(len(V), len(K))``."""
    first, second, density = grid.axes[_PEAK], grid.axes[_HALF], grid.marginal(_PEAK, _HALF)
    return first.numpy(), second.numpy(), density.numpy()


def _density_of_draws(ridge: Ridge) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the same of the learned prior, smoothed from draws.

    Of the flow, as both routes start from it; of its density there would be a grid to make.
    """
    with forked(0), torch.no_grad():
        logs = ridge.prior.sample((_DRAWS,)).log().numpy()
    counts, *edges = np.histogram2d(logs[:, _PEAK], logs[:, _HALF], 120, ((3, 8), (-7, 1)))
    first, second = ((side[1:] + side[:-1]) / 2 for side in edges)
    return first, second, gaussian_filter(counts, 1.5)


def _contour(
    axes: Any, plane: tuple[np.ndarray, np.ndarray, np.ndarray], colour: str, **options: Any
) -> None:
    """Draw the line of equal density, of V and K, that holds a share of the mass."""
    peak, half = np.exp(plane[0])[:, None], np.exp(plane[1])
    # Even in logarithms: a point has the mass of its density there, V times K that of V and K.
    density = plane[2] / (peak * half)
    order = np.argsort(-density, axis=None)
    held = plane[2].ravel()[order].cumsum() / plane[2].sum()
    level = density.ravel()[order][np.searchsorted(held, _SHARE)]
    axes.contour(peak[:, 0], half, density.T, levels=[level], colors=[colour], **options)
