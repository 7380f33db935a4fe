"""Claim: the evidence of data in the tail of any prior is within 0.2 nat of quadrature, or warned.

Priors with quantiles, one datum four to eight standard deviations out on every side that has a
tail, in single and in double precision; default settings of ``log_evidence``. Beside it, what a
prior's own ``icdf`` of the normal probability gives, which is how the map is usually written.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import read, section, source, table
from scipy import integrate, special, stats
from torch import Tensor

import pyro_stad

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
    "smoke": ("--laws Laplace",),
}

# The law, its parameters, the same of SciPy, and noise from which the datum comes.
LAWS: dict[str, tuple[Any, tuple[float, ...], Any, tuple[float, ...]]] = {
    "exponential": (dist.Exponential, (1.0,), stats.expon(), (4.0, 6.0, 8.0)),
    "half normal": (dist.HalfNormal, (1.0,), stats.halfnorm(), (4.0, 6.0, 8.0)),
    "half Cauchy": (dist.HalfCauchy, (1.0,), stats.halfcauchy(), (4.0,)),
    "Weibull": (dist.Weibull, (1.0, 1.5), stats.weibull_min(1.5), (4.0, 6.0, 8.0)),
    "Laplace": (dist.Laplace, (0.0, 1.0), stats.laplace(), (-8.0, -6.0, -4.0, 4.0, 6.0, 8.0)),
    "Gumbel": (dist.Gumbel, (0.0, 1.0), stats.gumbel_r(), (-6.0, -4.0, 4.0, 6.0, 8.0)),
    "logistic": (dist.Logistic, (0.0, 1.0), stats.logistic(), (-8.0, -4.0, 4.0, 8.0)),
    "gamma": (dist.Gamma, (2.0, 1.0), stats.gamma(2), (4.0, 6.0, 8.0)),
    "Student t, 10": (dist.StudentT, (10.0, 0.0, 1.0), stats.t(10), (-6.0, -4.0, 4.0, 6.0)),
    "Pareto, 3": (dist.Pareto, (1.0, 3.0), stats.pareto(3), (4.0, 6.0)),
    "Cauchy": (dist.Cauchy, (0.0, 1.0), stats.cauchy(), (-4.0, 4.0)),
}


def datum_and_width(known: Any, u: float) -> tuple[float, float]:
    """Return the quantile of ``known`` at noise ``u``, and a tenth of a noise's width there."""
    low, high = (_quantile(known, u + step) for step in (-0.1, 0.1))
    return _quantile(known, u), 0.5 * (high - low)


def _quantile(known: Any, u: float) -> float:
    return float(known.ppf(stats.norm.cdf(u)) if u < 0 else known.isf(stats.norm.sf(u)))


def by_icdf(prior: Any, y: Tensor, sd: float) -> float:
    """Return log Z by quadrature over noise of the usual map, in the prior's own precision."""
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    x = prior.icdf(torch.special.ndtr(u.to(y.dtype))).double()
    fit = dist.Normal(x, sd).log_prob(y.double()) + dist.Normal(0.0, 1.0).log_prob(u)
    return (torch.logsumexp(fit.nan_to_num(nan=-math.inf), 0) + math.log(24 / 200_000)).item()


def measure(name: str, u: float, dtype: torch.dtype) -> dict[str, Any]:
    kind, parameters, known, _ = LAWS[name]
    datum, sd = datum_and_width(known, u)
    prior = kind(*(torch.tensor(p, dtype=dtype) for p in parameters))
    y = torch.tensor(datum, dtype=dtype)

    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("x", prior), sd), obs=y)

    # By quadrature over noise, from the nearer tail: no prior density is asked for. Over all of it:
    # of a heavy tail, the datum is as wide as it is far, and the prior's bulk has its share.
    grid = torch.linspace(-13, 13, 260_001, dtype=torch.float64)
    truth = _by_quadrature(known, grid, float(y), sd)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = pyro_stad.log_evidence(model, y, progress=False)
    usual = by_icdf(prior, y, sd) if _has_icdf(prior) else None
    return {
        "law": name,
        "noise": u,
        "dtype": str(dtype).removeprefix("torch."),
        "truth": truth,
        "error": found.log_z - truth,
        "log_z_err": found.log_z_err,
        "method": found.method,
        "warned": any(issubclass(w.category, pyro_stad.EvidenceWarning) for w in seen),
        "icdf_error": None if usual is None else usual - truth,
        "calls": found.likelihood_calls,
    }


def _by_quadrature(known: Any, grid: Tensor, y: float, sd: float) -> float:
    u = grid.numpy()
    x = known.ppf(special.ndtr(u))
    x[u > 0] = known.isf(special.ndtr(-u[u > 0]))
    log_term = stats.norm.logpdf(y, x, sd) + stats.norm.logpdf(u)
    largest = log_term.max()
    mass = integrate.simpson(np.exp(log_term - largest), x=u)
    return float(largest + math.log(mass))


def _has_icdf(prior: Any) -> bool:
    try:
        prior.icdf(torch.tensor(0.5))
    except NotImplementedError:
        return False
    return True


def main() -> None:
    parser = arguments(__doc__, "tails")
    parser.add_argument("--laws", nargs="*", default=list(LAWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    rows = [
        measure(name, u, dtype)
        for name in options.laws
        for u in LAWS[name][3]
        for dtype in (torch.float32, torch.float64)
    ]
    for row in rows:
        print(row)
    write(options.name, {"provenance": made, "rows": rows})


def _tail_row(law: str, rows: list[dict[str, Any]]) -> list[str]:
    cells = [law, ", ".join(f"{u:+.0f}" for u in dict.fromkeys(row["noise"] for row in rows))]
    for key in ("error", "icdf_error"):
        for dtype in ("float32", "float64"):
            found = [row[key] for row in rows if row["dtype"] == dtype and row[key] is not None]
            worst = max(found, key=abs, default=None)
            cells.append("-" if worst is None else f"{worst:+.3f}")
    return [*cells, f"{sum(row['warned'] for row in rows)} of {len(rows)}"]


@section(290)
def page() -> str:
    result = read("tails")
    laws = list(dict.fromkeys(row["law"] for row in result["rows"]))
    rows = [_tail_row(law, [r for r in result["rows"] if r["law"] == law]) for law in laws]
    header = ["prior", "noise of the datum", "worst error, single", "worst error, double"]
    header += ["worst by icdf, single", "worst by icdf, double", "warned"]
    return (
        "## Evidence of data in tails\n\n"
        "One datum far out in the tail of a prior: log Z less quadrature, in nats. Beside it the "
        "usual map of noise, the prior's own `icdf` of the normal probability, in the same "
        "precision. Warned: how often `log_evidence` said that its two methods disagree.\n\n"
        f"{table(header, rows)}\n\n{source('tails', result)}\n"
    )


if __name__ == "__main__":
    main()
