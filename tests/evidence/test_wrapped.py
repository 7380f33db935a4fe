"""A learned prior inside other distributions has the guards that it has bare."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions.transforms import AffineTransform, ExpTransform

from pyro_stad import EvidenceError, OutOfDistributionWarning, log_evidence, to_arviz
from pyro_stad.density import find_flow, to_flow
from pyro_stad.model import LatentProblem


def bare(prior):
    return prior


def independent(prior):
    return prior.expand([3]).to_event(1)


def shifted(prior):
    return dist.TransformedDistribution(prior, [AffineTransform(1.0, 2.0, event_dim=1)])


def deep(prior):
    inner = dist.TransformedDistribution(shifted(prior), [ExpTransform()])
    return inner.expand([3]).to_event(1)


WRAPPED = [bare, independent, shifted, deep]
# What they make of a point of the prior.
OUTER = {
    bare: lambda x: x,
    independent: lambda x: x,
    shifted: lambda x: 1 + 2 * x,
    deep: lambda x: (1 + 2 * x).exp(),
}


@pytest.mark.parametrize("wrap", WRAPPED, ids=lambda w: w.__name__)
def test_it_is_found_with_its_coordinates(wrap, free_prior):
    fn = wrap(free_prior)
    flow = find_flow(fn)
    assert flow.likelihood is free_prior.likelihood
    value = fn.sample((4,))
    assert to_flow(fn, value).shape == value.shape
    tail = flow.tail_probability(to_flow(fn, value))
    assert tail.shape == value.shape[:-1]
    assert ((tail > 1e-6) & (tail <= 1)).all()


def test_the_coordinates_are_those_of_the_prior(free_prior):
    x = free_prior.sample((4,))
    torch.testing.assert_close(to_flow(deep(free_prior), (1 + 2 * x).exp()), x)


@pytest.mark.parametrize("fn", [dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0).to_event(0)])
def test_where_there_is_none(fn):
    assert find_flow(fn) is None


# Few particles may not confirm it either.
@pytest.mark.filterwarnings("ignore:nothing confirms", "ignore:.*standard errors apart")
@pytest.mark.parametrize("wrap", WRAPPED[:3], ids=lambda w: w.__name__)
def test_an_extrapolated_evidence_is_refused(wrap, free_prior):
    fn = wrap(free_prior)
    plated = not fn.batch_shape and len(fn.event_shape) == 1

    def model(y):
        if plated:
            with pyro.plate("p", 3):
                theta = pyro.sample("theta", fn)
                pyro.sample("y", dist.Normal(theta[..., 0], 0.03 * y), obs=y)
        else:
            theta = pyro.sample("theta", fn)
            pyro.sample("y", dist.Normal(theta[..., 0], 0.03 * y).to_event(1), obs=y)

    spread = free_prior.sample((500,))[:, 0]
    far = OUTER[wrap](spread.mean() + 10 * spread.std()).expand(3)
    problem = LatentProblem(model, far)
    assert [flow.features for flow in problem.flows] == [2]
    assert problem.network_calls(1) == 3 * free_prior.transport.sequential_calls()
    with pytest.raises(EvidenceError, match="hardly seen a sample"):
        log_evidence(model, far, particles=100, progress=False)
    draws = {"theta": far[:, None] * (1 + 0.01 * torch.randn(100, 3, 2))}
    with pytest.warns(OutOfDistributionWarning, match="100.0% of the draws of 'theta'"):
        data = to_arviz(draws, model=model, args=(far,))
    assert {"tail_probability", "surrogate_error", "lp"} <= set(data["sample_stats"].data_vars)


def test_the_bridge_is_corrected_inside_a_wrapper(free_prior):
    """The same correction as bare: it is that of the same prior at the same points."""
    draws = free_prior.sample((400,))
    found = []
    for wrap in (bare, shifted):
        fn = wrap(free_prior)

        def model(y, fn=fn, wrap=wrap):
            theta = pyro.sample("theta", fn)
            inner = theta if wrap is bare else (theta - 1) / 2
            pyro.sample("y", dist.Normal(inner[..., 0], 5.0), obs=y)

        given = draws if wrap is bare else 1 + 2 * draws
        found.append(
            log_evidence(
                model, draws[0, 0], method="bridge", draws={"theta": given}, progress=False
            )
        )
    plain, wrapped = found
    assert wrapped.correction == pytest.approx(plain.correction, rel=1e-6)
    assert wrapped.log_z == pytest.approx(plain.log_z, abs=1e-6)


def test_a_law_that_follows_another_site(free_prior):
    """A learned prior, shifted by a latent number: its tail is that of the shifted draw."""
    draws = {"shift": 5.0 * torch.randn(200), "theta": free_prior.sample((200,))}
    draws["theta"] = draws["theta"] + draws["shift"][:, None]

    def model(y):
        shift = pyro.sample("shift", dist.Normal(0.0, 5.0))
        move = AffineTransform(shift[..., None], 1.0, event_dim=1)
        theta = pyro.sample("theta", dist.TransformedDistribution(free_prior, [move]))
        pyro.sample("y", dist.Normal(theta[..., 0], 5.0), obs=y)

    y = torch.tensor(0.3)
    inner = draws["theta"] - draws["shift"][:, None]
    statistics = to_arviz(draws, model=model, args=(y,))["sample_stats"]
    expected = free_prior.tail_probability(inner)
    torch.testing.assert_close(
        torch.as_tensor(statistics["tail_probability"].values[0]), expected, rtol=1e-6, atol=1e-9
    )
    found = log_evidence(model, y, method="bridge", draws=draws, progress=False)
    assert found.extrapolated < 0.02
    assert found.correction is not None


def test_noise_of_a_deep_prior_is_that_of_the_prior_inside(free_prior):
    fn = deep(free_prior)

    def model(y):
        theta = pyro.sample("theta", fn)
        pyro.sample("y", dist.Normal(theta[..., 0].log(), 1.0).to_event(1), obs=y)

    problem = LatentProblem(model, torch.zeros(3))
    assert [flow.features for flow in problem.flows] == [2]
    # Three vectors of two numbers: the one that is far out counts.
    u = torch.zeros(2, 6)
    u[1, 4] = 4.0
    (found,) = problem.extrapolations(u, problem.white(u))
    assert found.share == 0.5
    assert found.too_many
