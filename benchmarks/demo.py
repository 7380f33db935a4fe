"""Claim: a learned prior carries a ridge between walls, which no normal fit does.

The demo, run whole, against the truth. The enzyme: means within 0.1 posterior standard deviations
and standard deviations within 10 % for V and K by both routes, log Z within 0.05; the normal
fits at least three times further off in K. The regression: a normal serves as well. All of it in
four minutes.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import arguments, provenance, write
from page import read, section, source, table

from pyro_stad.demo import DemoSettings, run_demo, text
from pyro_stad.demo.text import HEADER
from pyro_stad.demo.text import rows as answer_rows

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("--figure docs/demo.png",),
}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, "demo")
    parser.add_argument("--figure", type=Path, help="where to keep the picture of this run")
    options = parser.parse_args()
    made = provenance(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        summary = run_demo(folder, DemoSettings(seed=options.seed, progress=False))
        if options.figure is not None:
            shutil.copy(Path(folder) / "figure.png", options.figure)
    print(text(summary))
    for part in ("kinetics", "regression"):
        print(part, summary[part]["seconds"])
    write(options.name, {"provenance": made, "rows": [summary]})


def _errors_in_v_and_k(answer: dict[str, Any], names: list[str]) -> list[str]:
    places = [names.index(name) for name in ("V", "K")]
    pairs = [(answer["mean_error"][i], answer["sd_error"][i]) for i in places]
    return [cell for mean, sd in pairs for cell in (f"{mean:+.3f}", f"{sd:+.1%}")]


def _evidence_rows(kinetics: dict[str, Any]) -> list[list[str]]:
    of_b = kinetics["evidence"]
    found = {"B given A, learned prior": of_b}
    for name, value in of_b["normal fits"].items():
        found[f"B given A, {name}"] = {"truth": of_b["truth"], "log_z": value}
    found |= {f"all data, {name}": value for name, value in kinetics["comparison"].items()}
    rows = []
    for name, z in found.items():
        error = f" +- {z['log_z_err']:.3f}" if "log_z_err" in z else ""
        cells = (f"{z['truth']:.3f}", f"{z['log_z']:.3f}{error}", f"{z['log_z'] - z['truth']:+.3f}")
        rows.append([name, *cells])
    return rows


@section(110)
def page() -> str:
    result = read("demo")
    summary = result["rows"][0]
    kinetics, regression = summary["kinetics"], summary["regression"]
    seconds = sum(sum(part["seconds"].values()) for part in (kinetics, regression))
    rows = [
        [cells[0], *_errors_in_v_and_k(answer, kinetics["parameters"]), *cells[3:]]
        for answer, cells in zip(kinetics["answers"].values(), answer_rows(kinetics))
    ]
    header = ["answer", "V: mean", "V: sd", "K: mean", "K: sd", *HEADER[3:]]
    return (
        "## What a learned prior does to a posterior\n\n"
        f"The demo, {seconds:.0f} s. First the enzyme: errors against the grid, of means in "
        f"posterior standard deviations. {summary['says']['kinetics']}\n\n"
        f"{table(header, rows)}\n\n"
        "Its evidences, against quadrature; those of normal fits are by quadrature, too.\n\n"
        f"{table(['evidence', 'truth', 'log Z', 'error'], _evidence_rows(kinetics))}\n\n"
        f"Then the regression, the worst of {len(regression['parameters'])} parameters. "
        f"{summary['says']['regression']}\n\n"
        f"{table(list(HEADER), [list(cells) for cells in answer_rows(regression)])}\n\n"
        f"{source('demo', result)}\n"
    )


if __name__ == "__main__":
    main()
