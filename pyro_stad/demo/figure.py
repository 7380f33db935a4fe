"""The demonstration at a glance: where each prior puts the posterior, against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_stad.demo.closed_form import NormalInverseGamma

__all__ = ["draw"]

_STYLES = {
    "x-space": ("#0b6e4f", "o", "learned prior, x-space"),
    "auxiliary form": ("#3ba776", "D", "learned prior, auxiliary form"),
    "multivariate normal": ("#c28c1a", "s", "multivariate normal"),
    "independent normals": ("#c0392b", "^", "independent normals (means and sds of A)"),
    "ignoring A": ("#7f7f7f", "v", "ignoring A"),
}


def draw(
    path: Path,
    summary: dict[str, Any],
    chains: dict[str, np.ndarray],
    truth: NormalInverseGamma,
    of_a: NormalInverseGamma,
    ignoring: NormalInverseGamma,
) -> None:
    """Write the figure: errors of all answers on the left, two coefficients' plane on the right."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the figure needs matplotlib: pip install 'pyro-stad[demo]'") from error
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_errors(left, summary)
    _draw_plane(right, summary, chains, {"A": of_a, "B alone": ignoring, "A and B": truth})
    figure.savefig(path, dpi=130)


def _draw_errors(axes: Any, summary: dict[str, Any]) -> None:
    names = summary["parameters"]
    places = np.arange(len(names))
    axes.axhspan(-0.1, 0.1, color="#e5f2ec", zorder=0)
    axes.axhline(0, color="black", linewidth=0.8)
    for offset, (name, (colour, marker, label)) in enumerate(_STYLES.items()):
        shift = np.array(summary["answers"][name]["mean_error"])
        axes.plot(
            places + 0.12 * (offset - 2),
            shift,
            marker,
            color=colour,
            label=f"{label}: worst {np.abs(shift).max():.2f}",
            markersize=5,
        )
    axes.set_yscale("symlog", linthresh=0.2)
    axes.set_yticks(
        [-2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2], [-2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2]
    )
    axes.set_xticks(places, names, rotation=45, ha="right")
    axes.set_ylabel("error of the posterior mean, in posterior sds")
    axes.set_title("Posterior of A and B, against the closed form (band: 0.1 sd)", fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)


def _draw_plane(
    axes: Any,
    summary: dict[str, Any],
    chains: dict[str, np.ndarray],
    laws: dict[str, NormalInverseGamma],
) -> None:
    names = summary["parameters"]
    first, second = names.index("s1"), names.index("s2")
    drawn = chains["x-space"].reshape(-1, len(names))
    axes.plot(
        drawn[:, first],
        drawn[:, second],
        ".",
        color="#3ba776",
        markersize=2,
        alpha=0.5,
        label="NUTS draws, learned prior",
    )
    colours = {"A": "#2b5c9e", "B alone": "#7f7f7f", "A and B": "black"}
    for name, law in laws.items():
        line = _ellipse(law, first, second)
        axes.plot(*line, color=colours[name], linewidth=1.6, label=f"closed form, {name} (2 sd)")
    axes.set_xlabel(f"coefficient of {names[first]}")
    axes.set_ylabel(f"coefficient of {names[second]}")
    axes.set_title("Two collinear coefficients", fontsize=10)
    axes.legend(fontsize=8)


def _ellipse(law: NormalInverseGamma, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two-sigma contour of two coefficients."""
    covariance = torch.linalg.inv(law.precision) * law.rate / (law.shape - 1)
    pick = torch.tensor([first, second])
    factor = torch.linalg.cholesky(covariance[pick][:, pick]).numpy()
    turn = np.linspace(0, 2 * np.pi, 200)
    points = 2 * factor @ np.stack([np.cos(turn), np.sin(turn)])
    return law.mean[first].item() + points[0], law.mean[second].item() + points[1]
