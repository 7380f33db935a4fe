"""One of each kind, added from outside the package: a class with its registration, nothing else."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad import registry
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.drawing import DDIM, AbstractGrid, AbstractSampler, sampler_of
from pyro_stad.evidence import METHODS, EvidenceResult
from pyro_stad.evidence.method import AbstractMethod
from pyro_stad.fields import AbstractField
from pyro_stad.likelihood import AbstractCurve, AbstractLikelihood, Constant, FlowODE, SteinPath
from pyro_stad.ode import RK4, SOLVERS
from pyro_stad.ode.solvers import AbstractFixedGrid, Tableau
from pyro_stad.paths import PATHS
from pyro_stad.paths.base import AbstractPath
from pyro_stad.registry import build, describe, registered, storable
from pyro_stad.samplers import AbstractKernel, CrankNicolson, temper
from pyro_stad.transport import AbstractInvertible, Flow
from tests.oracles import mixture_sample

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Straight(AbstractPath):
    """A path of another clock: optimal transport at the square of its time."""

    t_min: float = 0.1
    t_max: float = 1.0

    def coefficients(self, t):
        one = torch.ones_like(t)
        return 1 - t * t, t * t, -2 * t, 2 * t * one

    def time(self, ratio):
        return (1 / (1 + 1 / ratio)).sqrt()


@dataclass(frozen=True)
class Ralston(AbstractFixedGrid):
    """Ralston's rule of order 2."""

    steps: int = 32
    tableau = Tableau((0.0, 2 / 3), ((), (2 / 3,)), (0.25, 0.75))


@dataclass(frozen=True)
class FiniteDifference(AbstractDivergence):
    """Central differences along each coordinate."""

    width: float = 1e-4
    is_exact = False
    is_stochastic = False

    def passes(self, features):
        return 2 * features

    def velocity_and_divergence(self, field, t, x):
        total = torch.zeros_like(x[:, 0])
        for index in range(x.shape[1]):
            step = torch.zeros_like(x)
            step[:, index] = self.width
            rise = field.velocity(t, x + step) - field.velocity(t, x - step)
            total = total + rise[:, index] / (2 * self.width)
        return field.velocity(t, x), total


@dataclass(frozen=True)
class Shrinking(AbstractCurve):
    """A curve straight to a point nearer to the middle."""

    share: float = 0.9

    def follow(self, field, start, times):
        followed = Constant().follow(field, start, times)
        place = (times - field.t_min) / (field.t_max - field.t_min)
        scale = 1 + (self.share - 1) * place
        rate = (self.share - 1) / (field.t_max - field.t_min)
        points = scale[:, None] * followed.points
        slopes = (rate * start)[:, None].expand_as(points)
        return type(followed)(points, slopes, self.share * start)

    def sequential_calls(self):
        return 0


@dataclass(frozen=True)
class ByHand(AbstractMethod):
    """Plain Monte Carlo from the prior."""

    particles: int = 1000

    def __call__(self, job):
        problem = job.problem
        u = torch.randn(self.particles, problem.size, generator=job.generator("by hand"))
        fit = problem.log_likelihood(u.to(problem.like)).double()
        log_z = torch.logsumexp(fit, 0).item() - torch.tensor(float(len(fit))).log().item()
        return EvidenceResult(
            log_z=log_z, log_z_err=0.1, method="by hand", repeats=(log_z,),
            likelihood_calls=len(fit), network_calls=None, formula_err=0.1, ess=100.0,
            data=problem.data[0],
        )  # fmt: skip


@dataclass(frozen=True)
class Lazy(AbstractKernel):
    """Crank and Nicolson's move, every other time."""

    acceptance = 0.2

    def step(self, state, law, scale, generator):
        move = CrankNicolson().step(state, law, scale, generator)
        awake = torch.rand(move.taken.shape, generator=generator, device=state.z.device) < 0.5
        return move._replace(state=move.state.where(awake, state), taken=move.taken & awake)


class Normal(AbstractField):
    """The field of standard normal data on a path that turns: nothing moves."""

    t_min, t_max, data_scale = 0.0, 1.0, 1.0

    def __init__(self, size=2):
        super().__init__()
        self.size, self.event_shape = size, torch.Size([size])

    def settings(self):
        return {"size": self.size}

    @classmethod
    def from_settings(cls, name, settings, source):
        return cls(**settings)

    def velocity(self, t, x):
        return torch.zeros_like(x)


class Finer(AbstractLikelihood):
    """The density of a flow on a grid some times finer than its draws are made on."""

    def __init__(self, field, divergence, solver, chunk_size=2048, log_mass=0.0, times=2):
        super().__init__(field, divergence, solver, chunk_size, log_mass)
        self.times = times

    def settings(self):
        return {"times": self.times}

    def log_prob(self, x):
        return FlowODE.of(self, solver=RK4(self.times * self.solver.steps)).log_prob(x)

    def sequential_calls(self):
        return self.times * self.solver.sequential_calls()


class Mirrored(AbstractInvertible):
    """The flow of a field, from the noise on the other side."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def settings(self):
        return {"flow": describe(self.flow, "transport")}

    @classmethod
    def from_settings(cls, name, settings, source):
        return cls(build(settings["flow"], "transport", source))

    def push(self, z):
        return self.flow.push(-z)

    def pull(self, x):
        return -self.flow.pull(x)

    def sequential_calls(self):
        return self.flow.sequential_calls()


@dataclass(frozen=True)
class Jumping(AbstractSampler):
    """To the mean of the data, and back out by as much of the mean of the noise."""

    share: float = 1.0

    @property
    def calls_per_step(self):
        return 1

    def walk(self, way, y, times):
        for before, after in pairwise(times):
            data, noise = way.parts(before, y)
            y = math.cos(after) * data + self.share * math.sin(after) * noise
            yield y


@dataclass(frozen=True)
class Halving(AbstractGrid):
    """Angles that halve."""

    count: int = 8

    @property
    def steps(self):
        return self.count

    def angles(self, low, high):
        return [max(low, high / 2**index) for index in range(self.count + 1)]


OURS = {
    Jumping: ("sampler", "jumping"),
    Halving: ("grid", "halving"),
    Normal: ("field", "standard normal"),
    Finer: ("likelihood", "finer"),
    Mirrored: ("transport", "mirrored"),
    Straight: ("path", "straight"),
    Ralston: ("solver", "ralston"),
    FiniteDifference: ("divergence", "finite difference"),
    Shrinking: ("curve", "shrinking"),
    ByHand: ("evidence method", "by hand"),
    Lazy: ("kernel", "lazy"),
}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """Register all, as a decorator would, and take them out again: others go through all names."""
    for kind, (axis, name) in OURS.items():
        assert storable(axis, name)(kind) is kind
    yield
    for axis, name in OURS.values():
        del registry._AXES[axis][name]


@pytest.fixture(scope="module")
def prior():
    torch.set_default_dtype(torch.float64)
    return pyro_stad.fit(
        mixture_sample(400, 2, seed=1), path="straight", budget="tiny", members=0, progress=False,
        dtype=torch.float64,
    )  # fmt: skip


def again(prior, tmp_path):
    prior.save(tmp_path / "prior.safetensors")
    return pyro_stad.load(tmp_path / "prior.safetensors")


def test_a_path_is_fitted_stored_and_read(prior, tmp_path):
    assert "straight" in PATHS
    loaded = again(prior, tmp_path)
    assert loaded.likelihood.field.path == Straight()
    x = prior.sample((5,))
    torch.testing.assert_close(loaded.log_prob(x), prior.log_prob(x), rtol=0, atol=1e-12)


def test_a_solver_a_divergence_and_a_curve_are_stored_and_right(prior, tmp_path):
    assert "ralston" in SOLVERS
    field, x = prior.likelihood.field, prior.sample((5,))
    exact = prior.with_likelihood(FlowODE(field, Exact(), Ralston(64)))
    other = prior.with_likelihood(FlowODE(field, FiniteDifference(), Ralston(64)))
    # A second-order difference of width 1e-4, in float64.
    torch.testing.assert_close(other.log_prob(x), exact.log_prob(x), rtol=0, atol=1e-5)
    curve = prior.with_likelihood(SteinPath(field, Exact(), Ralston(), Shrinking(), 32))
    for changed in (other, curve):
        loaded = again(changed, tmp_path)
        torch.testing.assert_close(loaded.log_prob(x), changed.log_prob(x), rtol=0, atol=1e-12)
    assert loaded.likelihood.curve == Shrinking()


def test_a_field_a_likelihood_and_a_transport_are_stored_and_right(prior, tmp_path):
    x = prior.sample((5,))
    field = prior.likelihood.field
    ours = prior.with_likelihood(Finer(field, Exact(), RK4(4), times=3))
    truth = prior.with_likelihood(FlowODE(field, Exact(), RK4(12))).log_prob(x)
    for one in (ours, again(ours, tmp_path)):
        torch.testing.assert_close(one.log_prob(x), truth, rtol=0, atol=1e-12)

    other = FlowPrior(
        FlowODE(Normal(2), Exact(), RK4(2)), torch.zeros(2), torch.eye(2), prior.layout,
        transport=Mirrored(Flow(Normal(2), RK4(2))),
    )  # fmt: skip
    loaded = again(other, tmp_path)
    truth = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    torch.testing.assert_close(loaded.log_prob(x), truth.log_prob(x))
    z = torch.randn(3, 2)
    torch.testing.assert_close(loaded.transport.push(z), -z)
    torch.testing.assert_close(loaded.transport.pull(-z), z)


def test_a_sampler_and_a_grid_are_stored_and_draw(prior, tmp_path):
    ours = prior.with_sampler(Jumping(Halving(6)))
    loaded = again(ours, tmp_path)
    assert loaded.sampler == Jumping(Halving(6))
    x, same = (
        each.sample([4], generator=torch.Generator().manual_seed(0))
        for each in (loaded, prior.with_sampler(DDIM(Halving(6))))
    )
    torch.testing.assert_close(x, same)  # with all of the noise, it is DDIM
    assert sampler_of("jumping", 7).sequential_calls() == 7


def test_an_evidence_method_is_an_object_or_a_name():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.ones(()))

    assert "by hand" in METHODS
    truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.ones(())).item()
    for method in ("by hand", ByHand(particles=4000)):
        found = pyro_stad.log_evidence(model, method=method, progress=False)
        assert found.method == "by hand"
        assert abs(found.log_z - truth) < 0.1


def test_a_kernel_moves_tempered_particles():
    class Problem:
        objects, size, data, calls = 1, 1, ("none",), 0

        def __init__(self):
            self.like = torch.zeros(1)

        def of_objects(self, which, u):
            return -2.0 * (u - 1).square().sum(-1)

    assert "lazy" in registered("kernel")
    runs = temper(Problem(), 2000, 4, torch.Generator().manual_seed(0), kernel=Lazy())
    truth = -0.5 * torch.tensor(5.0).log() - 0.4
    assert abs(runs.log_z.mean() - truth) < 0.1


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="the path 'ot' is OptimalTransport already"):
        storable("path", "ot")(Straight)
    namesake = type("OptimalTransport", (Straight,), {"__module__": __name__})
    with pytest.raises(ValueError, match="already"):
        storable("path", "ot")(namesake)


BENCHMARK = """
from common import arguments, provenance, write
from page import read, section

RUNS = {"short": ("",), "smoke": ("",)}


def main() -> None:
    options = arguments(__doc__, "mine").parse_args()
    write(options.name, {"provenance": provenance(0), "rows": [{"answer": 42}]})


@section(1)
def page() -> str:
    return f"## Mine\\n\\nThe answer is {read('mine')['rows'][0]['answer']}.\\n"


if __name__ == "__main__":
    main()
"""


def test_a_benchmark_is_one_file(tmp_path):
    """It is found, run and on the page, before all others."""
    folder = tmp_path / "benchmarks"
    (tmp_path / "docs").mkdir()
    folder.mkdir()
    for name in ("common", "page", "run", "tables"):
        (folder / f"{name}.py").write_text((ROOT / "benchmarks" / f"{name}.py").read_text())
    (folder / "mine.py").write_text(BENCHMARK)
    subprocess.run([sys.executable, str(folder / "run.py"), "short"], check=True)
    assert json.loads((folder / "results" / "mine.json").read_text())["rows"]
    assert "The answer is 42." in (tmp_path / "docs" / "benchmarks.md").read_text()
