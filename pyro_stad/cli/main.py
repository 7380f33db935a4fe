"""``pyro-stad``: samples to priors from a terminal.

Errors are one line on standard error; the exit code is 2 for a command that makes no sense and 1
for one that failed.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer

from pyro_stad._random import forked
from pyro_stad.cli.arguments import (
    description,
    finite,
    names_of,
    parse_bounds,
    print_json,
    rows_or_fraction,
    weights_of,
)
from pyro_stad.cli.check import check_prior
from pyro_stad.cli.files import check_out, check_table, even_rows, read_points, write_table
from pyro_stad.cli.learned import prior_of
from pyro_stad.cli.one_step import one_step
from pyro_stad.cli.options import (
    AsJson,
    BurnIn,
    Given,
    LogWeights,
    NoProgress,
    NoWeights,
    Precision,
    PriorFile,
    Seed,
    Weights,
)
from pyro_stad.data import read_chain
from pyro_stad.demo import DemoSettings, run_demo, text
from pyro_stad.fitting import fit as fit_prior

__all__ = ["app"]

app = typer.Typer(
    name="pyro-stad",
    help="Learn a Pyro prior from samples, and ask how good it is.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"pyro-stad {version('pyro-stad')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Learn a Pyro prior from samples, and ask how good it is."""


@app.command()
def fit(
    chain: Annotated[
        Path,
        typer.Argument(
            help="Samples: a table (.csv, .dat, .npy, .parquet, ...), the chain of a sampler "
            "(Stan, PyMC, emcee, Cobaya, ...), or the root of its files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the prior.")],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Parameters to learn, separated by commas, or repeat the option. By default all "
            "that are not the sampler's own, derived or constant."
        ),
    ] = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=LOW,HIGH; leave a side empty for none. NAME=periodic, NAME=PERIOD or "
            "NAME=LOW,HIGH,periodic for an angle. Repeat per parameter. The chain's own bounds "
            "hold for the others."
        ),
    ] = None,
    weights: Weights = None,
    log_weights: LogWeights = None,
    no_weights: NoWeights = False,
    burn_in: BurnIn = None,
    path: Annotated[
        str,
        typer.Option(
            help="Path from noise to data: ot, vp, cosine, subvp, ve, edm, psld, or cnf for a "
            "free-form flow."
        ),
    ] = "ot",
    budget: Annotated[
        str, typer.Option(help="How long to train: tiny, quick, standard or thorough.")
    ] = "standard",
    members: Annotated[
        int, typer.Option(help="Refits to resamples, which tell the error of learning; 0 for none.")
    ] = 5,
    dtype: Annotated[Precision, typer.Option(help="Precision of the prior.")] = Precision.float32,
    seed: Seed = 0,
    no_progress: NoProgress = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder for the state of the fit; one that was killed goes on from it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Learn a prior from CHAIN and write it to a file."""
    check_out(out, [chain])
    samples = read_chain(
        chain,
        burn_in=rows_or_fraction(burn_in),
        var_names=names_of(columns),
        weights=weights_of(weights, log_weights, no_weights=no_weights),
        log_weights=log_weights,
    )
    check_out(out, samples.files)
    prior = fit_prior(
        samples,
        bounds=parse_bounds(bounds or []),
        path=path,
        budget=budget,
        members=members,
        seed=seed,
        progress=not no_progress,
        resume=resume,
        dtype=getattr(torch, dtype.value),
    )
    prior.save(out)
    if as_json:
        read = {"left_out": dict(samples.left_out), "burn_in": samples.burn_in}
        print_json({"prior": str(out), "names": prior.names, **read, **description(prior)})
    else:
        typer.echo(f"{samples!r}\n{prior.summary()}\nwrote {out}")


@app.command()
def sample(
    prior: PriorFile,
    out: Annotated[Path, typer.Option(help="Where to write the draws: .csv or .npy.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of draws.")] = 1000,
    given: Given = None,
    seed: Seed = 0,
) -> None:
    """Draw from a prior, a generator of one step, or a conditional flow at a context."""
    check_table(out, [prior])
    learned = prior_of(prior, given or (), for_draws=True)
    with forked(seed):
        draws = learned.sample((count,))
    write_table(out, draws, learned.names)
    typer.echo(f"wrote {count} draws to {out}")


app.command("one-step")(one_step)


@app.command("log-prob")
def log_prob(
    prior: PriorFile,
    points: Annotated[
        Path, typer.Argument(help="Points: whatever `pyro-stad fit` reads, with the same names.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the table, .csv or .npy, if not here.")
    ] = None,
    error: Annotated[
        bool,
        typer.Option(
            "--error",
            help="Add a bound on the error of the surrogate, and the standard error by learning, "
            "in nats.",
        ),
    ] = False,
    tail: Annotated[
        bool, typer.Option("--tail", help="Add how far out a point is, and how probable it looks.")
    ] = False,
    given: Given = None,
    as_json: AsJson = False,
) -> None:
    """Print the log-density of points, as a table with a header."""
    if out is not None:
        check_table(out, [prior, points])
    learned = prior_of(prior, given or ())
    values, files = read_points(points, learned)
    if out is not None:
        check_table(out, files)
    table = {"log_prob": learned.log_prob}
    if error:
        table["surrogate_error"] = learned.surrogate_error
        if learned.spread is not None:
            table["learning_error"] = learned.learning_error
    if tail:
        table |= {
            "tail_probability": learned.tail_probability,
            "density_level": learned.density_level,
        }
    with torch.no_grad():
        columns = {name: compute(values) for name, compute in table.items()}
    if out is not None:
        write_table(out, torch.stack(list(columns.values()), 1), columns)
        typer.echo(f"wrote {', '.join(columns)} of {len(values)} points to {out}")
    elif as_json:
        print_json({name: finite(column) for name, column in columns.items()})
    else:
        typer.echo(",".join(columns))
        for row in zip(*(column.tolist() for column in columns.values())):
            typer.echo(",".join(f"{value:.6f}" for value in row))


@app.command()
def check(
    prior: PriorFile,
    samples: Annotated[
        Path,
        typer.Option(help="Samples that the fit has not seen; whatever `pyro-stad fit` reads."),
    ],
    weights: Weights = None,
    log_weights: LogWeights = None,
    no_weights: NoWeights = False,
    burn_in: BurnIn = None,
    figure: Annotated[Path | None, typer.Option(help="Where to write a picture, .png.")] = None,
    most: Annotated[int, typer.Option(min=2, help="Use at most this many samples.")] = 1000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a prior on held-out samples.

    Shows whether it describes them, the accuracy of its log-density, its normaliser and its Stein
    residual.
    """
    if figure is not None:
        check_out(figure, [prior, samples])
    learned = prior_of(prior)
    chain = read_chain(
        samples,
        burn_in=rows_or_fraction(burn_in),
        var_names=learned.names,
        names=learned.names,
        weights=weights_of(weights, log_weights, no_weights=no_weights),
        log_weights=log_weights,
    )
    if figure is not None:
        check_out(figure, chain.files)
    points = even_rows(chain, most).to(learned.transforms[1].loc.dtype)
    audited, fitness = check_prior(learned, points, seed, figure)
    if as_json:
        print_json({**audited.to_dict(), "goodness": fitness.to_dict()})
    else:
        typer.echo(f"{learned!r}\n{fitness.text()}")
        for trouble in fitness.troubles:
            typer.echo(f"  WARNING: {trouble}")
        typer.echo(audited.text())
        for residual in audited.stein:
            typer.echo(
                f"  Stein residual at {residual.fraction:.2f} of the way to noise: "
                f"{residual.mean:+.4f} +- {residual.standard_error:.4f}"
            )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
    budget: Annotated[str, typer.Option(help="Budget of the fit to the enzyme.")] = "standard",
    samples: Annotated[int, typer.Option(min=10, help="NUTS draws per chain.")] = 1000,
    warmup: Annotated[int, typer.Option(min=10, help="NUTS warm-up per chain.")] = 200,
    no_progress: NoProgress = False,
    as_json: AsJson = False,
) -> None:
    """Update an enzyme's law and a regression in two steps, and compare with the truth."""
    settings = DemoSettings(budget=budget, samples=samples, warmup=warmup, progress=not no_progress)
    summary = run_demo(out, settings)
    if as_json:
        print_json(summary)
        return
    typer.echo(text(summary))
    typer.echo(f"wrote {out / 'summary.json'} and {out / 'figure.png'}")
