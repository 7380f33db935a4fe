"""A catalogue on disk to a prior on disk: fit, audit, save, load, and ask for densities.

Without arguments it writes a small catalogue of its own: stars with a colour, a magnitude and a
parallax that is positive.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas
import torch

import pyro_stad


def make_catalogue(path: Path) -> None:
    """Write 4,000 made-up stars."""
    rng = np.random.default_rng(0)
    giant = rng.random(4000) < 0.3
    colour = np.where(giant, rng.normal(1.1, 0.1, 4000), rng.normal(0.7, 0.2, 4000))
    magnitude = np.where(giant, rng.normal(0.5, 0.4, 4000), 4 + 5 * (colour - 0.6))
    magnitude = magnitude + rng.normal(0, 0.3, 4000)
    table = {"colour": colour, "magnitude": magnitude, "parallax": rng.gamma(2.0, 1.5, 4000)}
    pandas.DataFrame(table).to_csv(path, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalogue", type=Path)
    parser.add_argument("--positive", nargs="*", default=["parallax"])
    parser.add_argument("--budget", default="quick")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        catalogue = options.catalogue or Path(folder) / "stars.csv"
        if options.catalogue is None:
            make_catalogue(catalogue)
        table = pandas.read_csv(catalogue)
        bounds = {name: (0, None) for name in options.positive}
        pyro_stad.fit(table, bounds=bounds, budget=options.budget).save(Path(folder) / "prior")
        prior = pyro_stad.load(Path(folder) / "prior")
    print(prior.summary())
    draws = prior.sample((1000,))
    print(pandas.DataFrame(draws.numpy(), columns=list(prior.names)).describe().round(2))
    unlikely = prior.tail_probability(torch.as_tensor(table.to_numpy()).float()).argmin()
    print(f"the oddest row of the catalogue:\n{table.iloc[int(unlikely)]}")


if __name__ == "__main__":
    main()
