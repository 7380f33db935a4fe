"""Files that 0.1 wrote are read to the same densities and the same draws.

``tests/fixtures/prior_0_1`` holds priors of four parameters, one bounded, one an angle, one with a
mapped margin, in single precision: written before draws had a grid of their own, and one of them
when curves were still made consistent.
"""

import json
from pathlib import Path

import pytest
import torch

import pyro_stad

FOLDER = Path(__file__).parents[1] / "fixtures" / "prior_0_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_file_has_the_density_and_the_draws_that_it_had(name):
    # In double precision, as it was when the expected numbers were made: rounding is no matter.
    prior = pyro_stad.load(FOLDER / f"{name}.safetensors").to(torch.float64)
    expected = EXPECTED[name]
    found = prior.log_prob(torch.tensor(expected["points"]))
    torch.testing.assert_close(found, torch.tensor(expected["log_prob"]), rtol=0, atol=1e-6)
    draws = torch.tensor(expected["noise"])
    for transform in prior.transforms:
        draws = transform(draws)
    torch.testing.assert_close(draws, torch.tensor(expected["draws"]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_file_saved_again_stays_what_it_is(name, tmp_path):
    prior, path = pyro_stad.load(FOLDER / f"{name}.safetensors"), tmp_path / "again.safetensors"
    prior.save(path)
    points = torch.tensor(EXPECTED[name]["points"], dtype=torch.float32)
    again = pyro_stad.load(path)
    torch.testing.assert_close(again.log_prob(points), prior.log_prob(points), rtol=0, atol=0)
    assert repr(again) == repr(prior)


def test_the_fixture_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 200_000
