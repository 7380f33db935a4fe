"""FlowReparam: two forms of one model, and all that a model may do to a site."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample, init_to_value
from pyro.infer.reparam import TransformReparam
from pyro.optim import Adam
from torch.distributions import AffineTransform

import pyro_stad
from pyro_stad.infer import FORMS, FlowReparam

OBSERVED = torch.tensor([0.5, -0.3])


def model_of(prior):
    def model(y=OBSERVED):
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=y)

    return model


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def trace_of(model, **fixed):
    return poutine.trace(poutine.condition(model, data=fixed)).get_trace()


def test_both_forms_are_the_model(free_prior, form):
    """The density of the base site is the site's, by change of variables."""
    model = FlowReparam(form)(model_of(free_prior))
    trace = poutine.trace(model).get_trace()
    base, theta = (trace.nodes[name] for name in ("theta_base", "theta"))
    assert theta["is_observed"]
    assert not base["is_observed"]
    at = base["value"].detach().requires_grad_()
    transforms = free_prior.transforms[0 if form == "noise" else 1 :]
    image = at
    for transform in transforms:
        image = transform(image)
    torch.testing.assert_close(image, theta["value"])
    jacobian = torch.autograd.functional.jacobian(lambda x: _carried(x, transforms), at)
    known = free_prior.log_prob(theta["value"]) + torch.linalg.slogdet(jacobian)[1]
    # The noise's density is of the flow itself, on the draws' grid; the other one distilled.
    torch.testing.assert_close(base["fn"].log_prob(at), known, rtol=0, atol=0.3)
    if form == "whitened":
        torch.testing.assert_close(base["fn"].log_prob(at), known, rtol=0, atol=1e-9)


def _carried(x, transforms):
    for transform in transforms:
        x = transform(x)
    return x


def test_the_noise_form_is_that_of_pyro(free_prior):
    ours = FlowReparam()(model_of(free_prior))
    theirs = poutine.reparam(model_of(free_prior), config={"theta": TransformReparam()})
    z = torch.randn(2)
    for name in ("theta", "y"):
        one, other = (trace_of(m, theta_base=z).nodes[name]["value"] for m in (ours, theirs))
        assert torch.equal(one, other)


def test_nuts_and_svi_run_on_both(free_prior, form):
    model = FlowReparam(form)(model_of(free_prior))
    draws = free_prior.sample((20_000,))
    weights = dist.Normal(draws, 0.5).to_event(1).log_prob(OBSERVED).softmax(0)
    mean = weights @ draws
    sd = (weights @ (draws - mean) ** 2).sqrt()
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_sample, max_tree_depth=5), 120, 60,
        disable_progbar=True,
    )  # fmt: skip
    mcmc.run()
    theta = Predictive(model, mcmc.get_samples())()["theta"]
    # At least 20 effective draws: five standard errors, and the distillation's.
    assert ((theta.mean(0) - mean).abs() / sd).max() < 5 / math.sqrt(20) + 0.1
    for elbo in (Trace_ELBO(), JitTrace_ELBO(ignore_jit_warnings=True)):
        pyro.clear_param_store()
        guide = AutoNormal(model, init_loc_fn=init_to_sample)
        svi = SVI(model, guide, Adam({"lr": 0.02}), elbo)
        losses = [svi.step() for _ in range(30)]
        assert all(math.isfinite(loss) for loss in losses)


def test_initial_values_are_pulled_back(free_prior, form):
    """Of the site, or of its base; what a default initialisation draws is drawn in noise."""
    model = FlowReparam(form)(model_of(free_prior))
    theta = free_prior.sample()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        guide = AutoNormal(model, init_loc_fn=init_to_value(values={"theta": theta}))
        guide()
    start = guide.locs.theta_base.detach()
    image = _carried(start, free_prior.transforms[0 if form == "noise" else 1 :])
    # There and back on two time grids.
    torch.testing.assert_close(image, theta, rtol=0, atol=0.02)
    pyro.clear_param_store()
    at = torch.tensor([0.1, 0.2])
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"theta_base": at}))
    guide()
    assert torch.equal(guide.locs.theta_base.detach(), at)


def test_observed_and_other_sites_are_left_alone(free_prior, form):
    def model():
        pyro.sample("theta", free_prior, obs=torch.zeros(2))
        pyro.sample("scale", dist.Exponential(1.0))
        pyro.sample("hidden", free_prior.mask(torch.tensor(True)))

    trace = poutine.trace(FlowReparam(form)(model)).get_trace()
    assert "theta_base" not in trace.nodes
    assert "hidden_base" not in trace.nodes
    assert trace.nodes["theta"]["fn"] is free_prior
    with pytest.raises(TypeError, match=r"site 'scale' has a Exponential. Leave the site out"):
        poutine.reparam(model, config={"scale": FlowReparam(form)})()


def test_plates_events_transforms_and_several_sites(free_prior, tiny_prior, form):
    def model(n=4):
        first = pyro.sample("first", tiny_prior)
        with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", n, dim=-1):
            second = pyro.sample("second", free_prior)
        third = pyro.sample("third", free_prior.expand([5]).to_event(1))
        shifted = dist.TransformedDistribution(free_prior, [AffineTransform(1.0, 2.0, event_dim=1)])
        fourth = pyro.sample("fourth", shifted)
        return first, second, third, fourth

    found = FlowReparam(form)(model)()
    assert [tuple(x.shape) for x in found] == [(3,), (3, 4, 2), (5, 2), (2,)]
    trace = poutine.trace(FlowReparam(form)(model)).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["second_base"]["log_prob"].shape == (3, 4)
    assert trace.nodes["third_base"]["log_prob"].shape == ()
    back = (trace.nodes["fourth"]["value"] - 1) / 2
    assert torch.isfinite(free_prior.log_prob(back))


def test_a_subsampling_plate(free_prior, form):
    def model(data):
        with pyro.plate("rows", len(data), subsample_size=3) as index:
            theta = pyro.sample("theta", free_prior)
            pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=data[index])

    trace = poutine.trace(FlowReparam(form)(model)).get_trace(torch.randn(9, 2))
    assert trace.nodes["theta_base"]["value"].shape == (3, 2)
    assert trace.nodes["theta_base"]["scale"] == 3


def test_a_conditional_flow_whose_context_is_latent(form):
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(600, 1, generator=generator)
    x = context + 0.5 * torch.randn(600, 2, generator=generator)
    flow = pyro_stad.fit(x, context=context, budget="tiny", progress=False, dtype=torch.float64)

    def model():
        at = pyro.sample("context", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("objects", 3):
            theta = pyro.sample("theta", flow(at))
            pyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=torch.ones(3, 2))

    held = FlowReparam(form)(model)
    base = torch.randn(3, 2)
    low, high = (
        trace_of(held, context=torch.full((1,), at), theta_base=base).nodes["theta"]["value"]
        for at in (-1.0, 1.0)
    )
    # Non-centred: with the base fixed, the site follows the context.
    assert (high - low - 2).abs().max() < 0.5
    mcmc = MCMC(NUTS(held, max_tree_depth=4), 60, 60, disable_progbar=True)
    mcmc.run()
    # Posterior of the context: the mean of three noisy data with sd sqrt(0.5), in two coordinates.
    mean = mcmc.get_samples()["context"].mean()
    assert abs(mean - 12 / 13) < 0.4


def test_a_cut_becomes_a_factor(free_prior, form):
    cut = free_prior.truncate(lambda t: t["x"][..., 0] < 0.3)
    trace = poutine.trace(FlowReparam(form)(lambda: pyro.sample("theta", cut))).get_trace()
    trace.compute_log_prob()
    inside = bool(trace.nodes["theta"]["value"][0] < 0.3)
    factor = trace.nodes["theta_cut_0"]["log_prob"]
    assert float(factor) == pytest.approx(-math.log(cut.mass.value) if inside else -math.inf)


def test_cuts_of_a_batch_that_is_one_event(free_prior, form):
    """In a plate, the factors of three objects are one for each member of the plate."""
    cut = free_prior.truncate(lambda t: t["x"][..., 0] < 0.3)

    def model():
        with pyro.plate("n", 4):
            pyro.sample("theta", cut.expand([3]).to_event(1))

    trace = poutine.trace(FlowReparam(form)(model)).get_trace()
    trace.compute_log_prob()
    inside = (trace.nodes["theta"]["value"][..., 0] < 0.3).all(-1)
    wanted = torch.where(inside, -3 * math.log(cut.mass.value), -math.inf)
    torch.testing.assert_close(trace.nodes["theta_cut_0"]["log_prob"], wanted)


def test_an_evidence_is_the_same_in_every_form(free_prior, form):
    model = model_of(free_prior)
    plain = pyro_stad.log_evidence(model, progress=False)
    held = pyro_stad.log_evidence(FlowReparam(form)(model), progress=False)
    assert abs(plain.log_z - held.log_z) < 4 * math.hypot(plain.log_z_err, held.log_z_err) + 1e-3


def test_forms_are_named():
    with pytest.raises(ValueError, match=r"`form` must be one of \['noise', 'whitened'\]"):
        FlowReparam("auxiliary")
    assert repr(FlowReparam("whitened")) == "FlowReparam('whitened')"
