"""Many chains of one law: its moments, their warm-up, and going on from a file."""

import math

import pytest
import torch

from pyro_stad.errors import CheckpointError, EvidenceError
from pyro_stad.registry import registered
from pyro_stad.samplers import Ensemble
from pyro_stad.samplers.diagnostics import diagnose

KERNELS = registered("kernel")
MEAN = torch.tensor([3.0, -1.0, 0.0])
TRIL = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 0.3, 5.0]])


def log_density(which, x):
    """A normal law of which no coordinate is alike another; of other objects, it is elsewhere."""
    x = x - 10 * which[:, None, None]
    z = torch.linalg.solve_triangular(TRIL.to(x), (x - MEAN.to(x)).mT, upper=False).mT
    return -0.5 * z.square().sum(-1)


def made(kernel, seed=0, chains=128):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(1, 2, chains // 2, 3, generator=generator)
    return Ensemble(log_density, start, kernel, generator)


@pytest.mark.parametrize("name", KERNELS)
def test_chains_find_their_law(name):
    """From a start that is off, by warm-up and four hundred moves; moments to five errors."""
    chains = made(KERNELS[name]())
    chains.warm_up((20, 40, 80))  # for it is far off, and the small moves take long
    draws = []
    for _ in range(400):
        chains.step()
        draws.append(chains.x[0])
    assert chains.acceptance.item() > chains.kernel.acceptance - 0.15
    draws = torch.stack(draws, 1)
    covariance = TRIL @ TRIL.mT
    # Chains are independent, but for where they were warmed up: their means tell the error.
    means = draws.mean(1)
    error = means.std(0) / math.sqrt(len(means))
    assert ((means.mean(0) - MEAN) / error).abs().max() < 5
    found = torch.cov(draws.flatten(0, 1).mT)
    scale = covariance.diagonal().sqrt()
    assert ((found - covariance) / scale / scale[:, None]).abs().max() < 0.1
    torch.testing.assert_close(chains.log_p, log_density(chains.which, chains.x))


def test_a_hamiltonian_move_forgets_where_it_was():
    """Where its normal law is the law, a quarter turn and more is a new draw, and is taken."""
    chains = made(KERNELS["hamiltonian"](), chains=1000)
    chains.warm_up()
    before = chains.x
    for _ in range(4):
        chains.step()
    memory = ((before - MEAN) * (chains.x - MEAN)).mean((0, 1)) / (TRIL @ TRIL.mT).diagonal()
    assert memory.abs().max() < 0.2


@pytest.mark.parametrize("name", KERNELS)
def test_chains_go_on_from_a_file_to_the_last_bit(name, tmp_path):
    kernel, file, identity = KERNELS[name](), tmp_path / "chains", {"seed": 0}
    whole = made(kernel)
    whole.warm_up((5, 5))
    draws = []
    for index in range(6):
        whole.step()
        draws.append(whole.x)
        if index == 2:
            whole.save(file, {"x": draws}, identity, {"told": 1})
    assert Ensemble.known(file, identity) == {"told": 1}
    again, kept = Ensemble.load(file, log_density, kernel, torch.Generator().manual_seed(7))
    assert torch.equal(torch.stack(kept["x"]), torch.stack(draws[:3]))
    for known in draws[3:]:
        again.step()
        assert torch.equal(again.x, known)
    assert again.acceptance == whole.acceptance


def test_files_of_other_chains_are_refused(tmp_path):
    kernel, file = KERNELS["crank-nicolson"](), tmp_path / "chains"
    chains = made(kernel)
    chains.save(file, {}, {"seed": 0}, {})
    with pytest.raises(CheckpointError, match="has seed = 0, these chains have 1"):
        Ensemble.known(file, {"seed": 1})
    with pytest.raises(CheckpointError, match="of another model"):
        Ensemble.load(file, lambda *rows: 2 * log_density(*rows), kernel, torch.Generator())


def test_objects_have_laws_and_steps_of_their_own():
    """One law is ten times as wide; one is so bent that its steps are tiny, and no other's are."""
    scale = torch.tensor([1.0, 10.0, 1.0])

    def laws(which, x):
        where = 10 * which[:, None, None]
        plain = log_density(which, (x - where) / scale[which, None, None] + where)
        ring = -0.5 * ((x.norm(dim=-1) - 3.0) / 3e-3).square()
        return torch.where(which[:, None] == 2, ring, plain)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 2, 64, 3, generator=generator)
    start[2] = 3 * torch.nn.functional.normalize(start[2], dim=-1)
    chains = Ensemble(laws, start, KERNELS["hamiltonian"](), generator)
    chains.warm_up()
    assert chains.scale[2] < 0.1 * chains.scale[:2].min()
    draws = []
    for _ in range(100):
        chains.step()
        draws.append(chains.x)
    draws = torch.stack(draws).transpose(0, 1)
    for index, factor in enumerate((1.0, 10.0)):
        centre = 10 * index + factor * MEAN
        sd = factor * (TRIL @ TRIL.mT).diagonal().sqrt()
        flat = draws[index].flatten(0, 1)
        assert ((flat.mean(0) - centre) / sd).abs().max() < 0.1
        assert (flat.std(0) / sd - 1).abs().max() < 0.1
        # As many draws are worth as they would be without the other beside.
        known = diagnose(draws[index].permute(2, 1, 0))
        assert known.ess.min() > 0.4 * draws[index, ..., 0].numel()


def test_chains_that_went_to_infinity_are_named():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 2, 8, 3, generator=generator)
    start[1, 0, 3, 2] = -math.inf
    with pytest.raises(EvidenceError, match="chains of object 1 have come to infinite coordinates"):
        Ensemble(log_density, start, KERNELS["hamiltonian"](), generator)


def test_energies_and_divergences_are_known():
    """Of a normal law energies have mean D, with momenta; a cliff diverges, and a wall does not."""
    chains = made(KERNELS["hamiltonian"](), chains=512)
    chains.warm_up()
    energies = []
    for _ in range(40):
        chains.step()
        energies.append(chains.energy[0])
        assert not chains.diverging.any()
    found = torch.stack(energies)
    # Of three normal coordinates and three momenta, where the highest log-density is zero.
    torch.testing.assert_close(found.mean(), torch.tensor(3.0), rtol=0.05, atol=0)
    torch.testing.assert_close(found.var(), torch.tensor(3.0), rtol=0.1, atol=0)

    def steep(behind):
        return lambda which, x: log_density(which, x) + torch.where(x[..., 2] > 3.0, behind, 0.0)

    for behind, diverges in ((-1e5, True), (-math.inf, False)):
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(1, 2, 64, 3, generator=generator).clamp(max=2.0)
        chains = Ensemble(steep(behind), start, KERNELS["hamiltonian"](), generator)
        chains.warm_up()
        seen = []
        for _ in range(40):
            chains.step()
            seen.append(chains.diverging)
        assert torch.stack(seen).any() == diverges
        assert (chains.x[..., 2] <= 3.0).all()
