"""Streams of random numbers: any integer is a seed, and no two purposes share a stream."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad._random import generator, stream
from pyro_stad.divergence import Hutchinson, HutchPlusPlus, XTrace
from tests.oracles import mixture_sample

SEEDS = [0, -1, 7, np.int32(7), np.uint64(2**64 - 1), 2**60, 2**63, 2**64, -(2**70)]


@pytest.mark.parametrize("seed", SEEDS, ids=repr)
def test_any_integer_is_a_seed(seed):
    assert stream(seed, "a") == stream(int(seed), "a")
    assert 0 <= stream(seed, "a") < 2**64
    torch.rand(3, generator=generator(seed, "a"))


def test_streams_differ_in_the_bits_that_torch_looks_at():
    """Torch's generator on the CPU takes 32 bits; of 4,000 numbers two agree in 1 of 500 cases."""
    names = ["split", "teacher", "stein", "polish"]
    seeds = [*range(500), *(1000 * seed for seed in range(1, 501))]
    assert len({stream(seed, name) & 0xFFFFFFFF for seed in seeds for name in names}) == 4000


@pytest.mark.parametrize("kind", [Hutchinson, HutchPlusPlus, XTrace])
@pytest.mark.parametrize("seed", SEEDS, ids=repr)
def test_probes_take_any_integer(kind, seed):
    divergence = kind(seed=seed)
    assert type(divergence.seed) is int
    signs = divergence._signs(2, torch.zeros(64))
    assert torch.equal(signs, kind(seed=int(seed))._signs(2, torch.zeros(64)))


@pytest.mark.parametrize("seed", [np.int64(5), 2**60])
def test_a_fit_takes_any_integer(seed, tmp_path):
    prior = pyro_stad.fit(mixture_sample(200, 1), budget="tiny", progress=False, seed=seed)
    prior.save(tmp_path / "prior")
    assert pyro_stad.load(tmp_path / "prior").report.seed == int(seed)


def test_no_stage_shares_a_stream_with_another(monkeypatch):
    """Of a fit, its checks, its members and a calibration of what came out: every stream once."""
    seen = []

    def recorded(seed, name):
        seen.append((seed, name))
        return stream(seed, name)

    monkeypatch.setattr("pyro_stad._random.stream", recorded)
    state = torch.get_rng_state()
    samples = mixture_sample(400, 2, seed=5)
    prior = pyro_stad.fit(samples, budget="tiny", members=2, progress=False, seed=3)
    prior.calibrate(mixture_sample(100, 2, seed=6).float(), seed=3)
    assert len(seen) > 10
    assert len(seen) == len(set(seen)), [s for s in seen if seen.count(s) > 1]
    assert torch.equal(torch.get_rng_state(), state)


def test_generators_of_other_devices_are_left_alone(monkeypatch):
    """Seeding all by name would leave those of GPUs at a place of ours."""

    def refused(seed):
        raise AssertionError("the generators of all GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refused)
    monkeypatch.setattr(torch, "manual_seed", refused)
    prior = pyro_stad.fit(mixture_sample(200, 2), budget="tiny", members=0, progress=False)

    def model():
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=torch.zeros(2))

    pyro_stad.log_evidence(model, particles=100, repeats=2, progress=False)
