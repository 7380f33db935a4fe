"""``pyro-stad``: samples to priors from a terminal.

Errors are one line on standard error; the exit code is 2 for a command that makes no sense and 1
for one that failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pyro_stad.cli.check import check_prior
from pyro_stad.cli.files import read_points, read_samples, write_points
from pyro_stad.density import FlowPrior, load
from pyro_stad.density import fit as fit_prior

__all__ = ["app", "main"]

app = typer.Typer(
    name="pyro-stad",
    help="Learn a Pyro prior from samples, and ask how good it is.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

PriorFile = Annotated[Path, typer.Argument(help="A prior that `pyro-stad fit` wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress bars.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


@app.command()
def fit(
    samples: Annotated[Path, typer.Argument(help="Samples: .csv, .npy, .npz or .nc.")],
    out: Annotated[Path, typer.Option(help="Where to write the prior.")],
    bounds: Annotated[
        list[str] | None,
        typer.Option(help="NAME=LOW,HIGH; leave a side empty for none. Repeat per parameter."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Name of the column (or array) that holds weights.")
    ] = None,
    path: Annotated[
        str, typer.Option(help="ot, vp, cosine, subvp, ve, edm, or cnf for a free-form flow.")
    ] = "ot",
    budget: Annotated[str, typer.Option(help="tiny, quick, standard or thorough.")] = "standard",
    seed: Seed = 0,
    no_progress: NoProgress = False,
    resume: Annotated[
        Path | None, typer.Option(help="Folder for the state of an unfinished fit.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Learn a prior from SAMPLES and write it to a file."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {out.parent}")
    data, row_weights = read_samples(samples), None
    if weights is not None:
        data, row_weights = _take_weights(data, weights)
    prior = fit_prior(
        data,
        weights=row_weights,
        bounds=_parse_bounds(bounds or []),
        path=path,
        budget=budget,
        seed=seed,
        progress=not no_progress,
        resume=resume,
    )
    prior.save(out)
    if as_json:
        _print_json({"prior": str(out), "names": prior.names, **_description(prior)})
    else:
        typer.echo(prior.summary())
        typer.echo(f"wrote {out}")


@app.command()
def sample(
    prior: PriorFile,
    out: Annotated[Path, typer.Option(help="Where to write the draws: .csv or .npy.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of draws.")] = 1000,
    seed: Seed = 0,
) -> None:
    """Draw from a prior."""
    learned = load(prior)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draws = learned.sample((count,))
    write_points(out, draws, learned.names)
    typer.echo(f"wrote {count} draws to {out}")


@app.command("log-prob")
def log_prob(
    prior: PriorFile,
    points: Annotated[Path, typer.Argument(help="Points: .csv, .npy, .npz or .nc.")],
    as_json: AsJson = False,
) -> None:
    """Print the log-density of points, one number per line."""
    learned = load(prior)
    with torch.no_grad():
        values = learned.log_prob(read_points(points, learned))
    if as_json:
        # JSON has no infinities: a point outside the support is null.
        _print_json([v if abs(v) != float("inf") else None for v in values.tolist()])
    else:
        typer.echo("\n".join(f"{v:.6f}" for v in values.tolist()))


@app.command()
def check(
    prior: PriorFile,
    samples: Annotated[Path, typer.Option(help="Samples that the fit has not seen.")],
    figure: Annotated[Path | None, typer.Option(help="Where to write a picture, .png.")] = None,
    most: Annotated[int, typer.Option(min=2, help="Use at most this many samples.")] = 1000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a prior on held-out SAMPLES: accuracy, normaliser, Stein residual."""
    learned = load(prior)
    audited = check_prior(learned, read_points(samples, learned)[:most], seed, figure)
    if as_json:
        _print_json(audited.to_dict())
    else:
        typer.echo(f"{learned!r}\n{audited.text()}")
        for residual in audited.stein:
            typer.echo(
                f"  Stein residual at {residual.fraction:.2f} of the way to noise: "
                f"{residual.mean:+.4f} +- {residual.standard_error:.4f}"
            )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
    budget: Annotated[str, typer.Option(help="Budget of the fit.")] = "standard",
    samples: Annotated[int, typer.Option(min=10, help="NUTS draws per chain.")] = 800,
    warmup: Annotated[int, typer.Option(min=10, help="NUTS warm-up per chain.")] = 200,
    no_progress: NoProgress = False,
    as_json: AsJson = False,
) -> None:
    """Update a regression in two steps, and compare with the closed form."""
    from pyro_stad.demo import run_demo

    summary = run_demo(out, budget=budget, samples=samples, warmup=warmup, progress=not no_progress)
    if as_json:
        _print_json(summary)
        return
    typer.echo(f"{'answer':22}{'worst mean':>12}{'worst sd':>10}{'R-hat':>8}{'divergences':>13}")
    for name, answer in summary["answers"].items():
        r_hat = f"{answer['r_hat']:8.3f}" if "r_hat" in answer else " " * 8
        divergences = f"{answer['divergences']:13d}" if "divergences" in answer else ""
        typer.echo(
            f"{name:22}{answer['worst_mean_error']:10.3f}sd"
            f"{answer['worst_sd_error']:10.1%}{r_hat}{divergences}"
        )
    typer.echo(f"wrote {out / 'summary.json'} and {out / 'figure.png'}")


def main() -> None:
    """Run the command line and exit."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        code = app(arguments, standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return 1
    except Exception as error:
        # Usage errors of typer know their exit code; the classes have moved between versions.
        if hasattr(error, "format_message"):
            typer.echo(f"pyro-stad: {error.format_message()}", err=True)
            return 2
        if isinstance(error, (OSError, ValueError, TypeError, RuntimeError, ImportError)):
            typer.echo(f"pyro-stad: {' '.join(str(error).split())}", err=True)
            return 1
        raise
    return code if isinstance(code, int) else 0


def _parse_bounds(entries: list[str]) -> dict[str, tuple[float | None, float | None]] | None:
    parsed: dict[str, tuple[float | None, float | None]] = {}
    for entry in entries:
        name, _, pair = entry.partition("=")
        sides = pair.split(",")
        try:
            low, high = (float(side) if side.strip() else None for side in sides)
        except ValueError:
            raise typer.BadParameter(f"--bounds must be NAME=LOW,HIGH; got {entry!r}") from None
        parsed[name] = (low, high)
    return parsed or None


def _take_weights(data: Any, name: str) -> tuple[Any, Any]:
    """Split the weights off a table or a mapping of arrays."""
    names = list(getattr(data, "columns", data if isinstance(data, dict) else []))
    if name not in names:
        raise typer.BadParameter(f"--weights {name!r} is not among {[str(n) for n in names]}")
    if isinstance(data, dict):
        return {k: v for k, v in data.items() if k != name}, data[name]
    return data.drop(columns=name), data[name].to_numpy()


def _description(prior: FlowPrior) -> dict[str, Any]:
    parts = {"report": prior.report, "calibration": prior.calibration}
    return {name: part and part.to_dict() for name, part in parts.items()}


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
