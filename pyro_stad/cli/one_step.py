"""``pyro-stad one-step``: a prior, or a conditional flow, becomes a generator of one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyro_stad._config import encode
from pyro_stad.cli.arguments import print_json
from pyro_stad.cli.files import check_out
from pyro_stad.cli.learned import to_distil
from pyro_stad.cli.options import AsJson, NoProgress, PriorFile, Seed
from pyro_stad.fitting import distil_one_step
from pyro_stad.learn import EMSettings

__all__ = ["one_step"]


def one_step(
    prior: PriorFile,
    out: Annotated[Path, typer.Option(help="Where to write the generator.")],
    method: Annotated[
        str, typer.Option(help="regression on the flow's draws, em, or both.")
    ] = "regression",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the training.")] = 3000,
    inference_steps: Annotated[
        int, typer.Option(min=0, help="Langevin steps of em; 0 for its mode-seeking limit.")
    ] = EMSettings.inference_steps,
    seed: Seed = 0,
    no_progress: NoProgress = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder for the state; a run that was killed goes on from it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Distil a prior, or a conditional flow, into a generator of one network call a draw."""
    check_out(out, [prior])
    generator = distil_one_step(
        to_distil(prior), method=method, em=EMSettings(inference_steps=inference_steps),
        steps=steps, seed=seed, progress=not no_progress, resume=resume,
    )  # fmt: skip
    generator.save(out)
    if as_json:
        print_json({"generator": str(out), **encode(generator.distilled)})
    else:
        told = "" if generator.distilled is None else f"\n{generator.distilled.text()}"
        typer.echo(f"{generator!r}{told}\nwrote {out}")
