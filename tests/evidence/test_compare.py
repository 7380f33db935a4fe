"""Comparison of models: closed-form Bayes factors, and data that must be the same."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad.evidence import EvidenceResult, compare_evidence

Y = torch.tensor([0.4, -0.2, 1.3], dtype=torch.float64)
QUIET = {"progress": False}


def with_spread(spread):
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(3), spread).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    return model


def log_z(spread):
    return dist.Normal(0.0, math.hypot(spread, 1)).log_prob(Y).sum().item()


def test_bayes_factors_and_probabilities_are_those_of_the_closed_form():
    found = compare_evidence(
        narrow=with_spread(0.5), fit=with_spread(1.0), wide=with_spread(20.0),
        data=Y, options=QUIET,
    )  # fmt: skip
    truth = {"narrow": log_z(0.5), "fit": log_z(1.0), "wide": log_z(20.0)}
    assert list(found.results) == sorted(truth, key=truth.get, reverse=True)
    assert found.best == "narrow"
    for name in truth:
        factor = truth[name] - truth["narrow"]
        assert abs(found.log_bayes_factors[name] - factor) < 0.1
    total = math.fsum(math.exp(value) for value in truth.values())
    for name, value in truth.items():
        assert abs(found.probabilities[name] - math.exp(value) / total) < 0.03
    assert math.fsum(found.probabilities.values()) == pytest.approx(1)
    assert found.log_bayes_factor_errs["narrow"] == 0.0
    assert "log Bayes factor" in found.summary()
    assert len({len(line) for line in found.summary().splitlines()}) == 1


def of_rows(spread):
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, spread))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    return model


def test_leave_one_out_stands_beside_the_evidence():
    """Ten data, one mean: what is left out is normal, given the others, in closed form."""
    y = torch.randn(10, generator=torch.Generator().manual_seed(1))
    found = compare_evidence(near=of_rows(1.0), far=of_rows(30.0), data=y, options=QUIET)
    for name, spread in (("near", 1.0), ("far", 30.0)):
        precision = 1 / spread**2 + 9
        means = (y.sum() - y) / precision
        each = dist.Normal(means, (1 + 1 / precision) ** 0.5).log_prob(y)
        value, error = found.elpd_loo[name]
        # Ten pieces, whose errors are common: each the mean of weights, on a thousand draws.
        assert value == pytest.approx(each.sum().item(), abs=0.15)
        assert error == pytest.approx((10 * each.var()).sqrt().item(), rel=0.05)
    assert f"{value:.2f} +- {error:.2f}" in found.summary()
    # The evidence asks for the prior too: 30 times wider, 3.4 nat.
    assert -3.6 < found.log_bayes_factors["far"] < -2.8


def test_a_figure_shows_every_model(tmp_path):
    found = compare_evidence(a=result(-3.0), b=result(-4.0), c=result(-9.0))
    assert found.elpd_loo == {"a": None, "b": None, "c": None}
    sheet = found.figure()
    sheet.savefig(tmp_path / "comparison.png")
    left, right = sheet.axes
    assert [bar.get_width() for bar in left.patches] == list(found.probabilities.values())[::-1]
    assert {label.get_text() for label in left.get_yticklabels()} == {"a", "b", "c"}


def result(value, error=0.1, data="same"):
    return EvidenceResult(value, error, "smc", (value,), 0, data=data)


def test_errors_are_propagated():
    """Two equal evidences: the sd of the probability is a quarter of that of the difference."""
    found = compare_evidence(a=result(-3.0, 0.1), b=result(-3.0, 0.1))
    assert found.probabilities == {"a": 0.5, "b": 0.5}
    assert found.probability_errs["a"] == pytest.approx(0.25 * math.sqrt(0.02), rel=0.05)
    assert found.log_bayes_factor_errs["b"] == pytest.approx(math.sqrt(0.02))


def test_evidences_far_apart_do_not_overflow():
    found = compare_evidence(a=result(0.0), b=result(-2000.0))
    assert found.probabilities == {"a": 1.0, "b": 0.0}
    assert found.log_bayes_factors["b"] == -2000.0


def test_prior_probabilities():
    found = compare_evidence(a=result(0.0), b=result(0.0), prior_probabilities={"a": 3, "b": 1})
    assert found.probabilities["a"] == pytest.approx(0.75)


def half_of_the_data(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x[..., None] * torch.ones(2), 1.0).to_event(1), obs=y[:2])


def in_two_sites(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("first", dist.Normal(x, 1.0), obs=y[0])
    pyro.sample("rest", dist.Normal(x[..., None] * torch.ones(2), 1.0).to_event(1), obs=y[1:])


def test_the_same_data_in_other_sites_are_the_same_data():
    found = compare_evidence(
        one=with_spread(1.0), two=in_two_sites, data=Y, options={"particles": 200, **QUIET}
    )
    assert len(found.results) == 2


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({"a": with_spread(1.0)}, {}, "at least two models are compared; got"),
        ({"a": with_spread(1.0), "b": half_of_the_data}, {}, "'a' and 'b' observe different data"),
        ({"a": result(0.0), "b": result(0.0, data="other")}, {}, "observe different data"),
        (
            {"a": result(0.0), "b": result(0.0)},
            {"prior_probabilities": {"a": 1.0}},
            "`prior_probabilities` must have a positive number for each",
        ),
        (
            {"a": result(0.0), "b": result(0.0)},
            {"prior_probabilities": {"a": 1.0, "b": 0.0}},
            "`prior_probabilities` must have a positive number for each",
        ),
    ],
)
def test_what_can_not_be_compared(models, options, message):
    with pytest.raises(ValueError, match=message):
        pyro_stad.compare_evidence(data=Y, options={"particles": 200, **QUIET}, **options, **models)


def test_what_is_neither_model_nor_evidence():
    with pytest.raises(TypeError, match="b must be a Pyro model or an EvidenceResult; got 'x'"):
        compare_evidence(a=with_spread(1.0), b="x")


def test_models_of_their_own_data_are_called_without():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.3))

    found = compare_evidence(a=model, b=model, options={"particles": 200, **QUIET})
    assert found.probabilities["a"] == pytest.approx(0.5, abs=0.1)
