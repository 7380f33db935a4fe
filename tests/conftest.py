"""Fixtures: float64, one seed per test, a tiny fitted prior, and the folder of real data."""

from pathlib import Path

import pyro
import pytest
import torch

import pyro_stad
from tests.oracles import mixture_sample

# Tests run in one process per core; more threads than cores would only fight.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean_slate():
    """Seed, float64, validation on, an empty parameter store; all put back afterwards."""
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(0)
    yield
    # Not what was found: fixtures of a module come before this one, and set it too.
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def tiny_prior():
    """A prior of three named parameters, the first of them positive."""
    values = mixture_sample(600, 3, seed=3)
    values[:, 0] = values[:, 0].exp()
    return pyro_stad.fit(
        values,
        names=["scale", "shift", "slope"],
        bounds={"scale": (0, None)},
        budget="tiny",
        progress=False,
        dtype=torch.float64,
    )


@pytest.fixture(scope="session")
def free_prior():
    """A prior of two unbounded parameters."""
    return pyro_stad.fit(
        mixture_sample(600, 2, seed=4), budget="tiny", progress=False, dtype=torch.float64
    )


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside the repository")
    return folder
