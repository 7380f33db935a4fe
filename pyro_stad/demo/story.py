"""Sequential updating: yesterday's posterior as today's prior, in two parts.

First an enzyme, whose posterior after four measurements is a curved ridge between walls, which no
normal law describes; then a regression, whose posterior is nearly normal, so that a normal serves
as well. Each is held against an answer that is known without a learned prior.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pyro_stad.demo.figure import draw
from pyro_stad.demo.regression import run_regression
from pyro_stad.demo.ridge import run_ridge
from pyro_stad.demo.settings import DemoSettings

__all__ = ["run_demo"]

_CLOSE, _MIXED = 0.1, 1.05  # posterior sds, and R-hat
_UNMIXED = "the chains have not mixed, so that nothing follows"


def run_demo(out: str | os.PathLike[str], settings: DemoSettings | None = None) -> dict[str, Any]:
    """Run the demonstration; write ``summary.json``, ``figure.png`` and the priors into ``out``.

    Arguments:
        out: folder, made if need be.
        settings: how large everything is; None for four to six minutes of it.

    Returns:
        The summary, as written: one for ``"kinetics"``, one for ``"regression"``, and what they
        say.
    """
    settings = settings or DemoSettings()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    ridge = run_ridge(folder, settings)
    regression = run_regression(folder, settings)
    says = {"kinetics": _of_ridge(ridge.summary), "regression": _of_regression(regression)}
    summary = {"kinetics": ridge.summary, "regression": regression, "says": says}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    draw(folder / "figure.png", ridge)
    return summary


def _of_ridge(summary: dict[str, Any]) -> str:
    """Return what the first part says, in a sentence."""
    at = summary["parameters"].index("K")
    worst = {name: abs(answer["mean_error"][at]) for name, answer in summary["answers"].items()}
    learned = max(value for name, value in worst.items() if name.startswith("learned"))
    fits = {name: worst[name] for name in ("multivariate normal", "log-normal")}
    if not _mixed(summary):
        verdict = _UNMIXED
    elif learned <= _CLOSE and min(fits.values()) >= 3 * learned:
        verdict = "a ridge between walls needs a flow"
    else:
        verdict = "this run does not show that a flow is needed"
    normals = " and ".join(f"{value:.1f} by a {name}" for name, value in fits.items())
    return (
        f"The posterior mean of K is off by {learned:.2f} posterior sd at the most with the "
        f"learned prior, by {normals}: {verdict}."
    )


def _of_regression(summary: dict[str, Any]) -> str:
    """Return what the second part says, in a sentence."""
    learned, normal = (
        summary["answers"][name]["worst_mean_error"]
        for name in ("learned prior, x-space", "multivariate normal")
    )
    if not _mixed(summary):
        verdict = _UNMIXED
    elif normal <= learned + _CLOSE:
        verdict = "where a posterior is nearly normal, a normal serves as well"
    else:
        verdict = "a normal does not serve"
    return (
        f"The worst posterior mean is off by {learned:.2f} posterior sd with the learned prior, "
        f"by {normal:.2f} with a multivariate normal: {verdict}."
    )


def _mixed(summary: dict[str, Any]) -> bool:
    """Whether all chains agree, so that errors are more than noise."""
    found = [answer["r_hat"] for answer in summary["answers"].values() if "r_hat" in answer]
    return all(r_hat < _MIXED for r_hat in found)
