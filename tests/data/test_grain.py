"""Counts, rounded columns and piles are named; draws of a density are not."""

import warnings

import pytest
import torch

from pyro_stad.data.grain import warn_of_grain
from pyro_stad.errors import SampleWarning

ROWS = 2000


def normal(seed=0):
    return torch.randn(ROWS, generator=torch.Generator().manual_seed(seed))


def sticky():
    """A coordinate that one proposal in ten has moved."""
    return normal()[torch.arange(ROWS) // 10]


GRAINY = {
    "counts": (lambda: torch.poisson(torch.full((ROWS,), 3.0)), r"k takes \d+ values in step"),
    "binary": (lambda: (normal() > 0).double(), "k takes 2 values in steps of 1"),
    "rounded": (lambda: normal().round(decimals=1), "k takes .* in steps of 0.1"),
    "log of counts": (
        lambda: (1 + torch.poisson(torch.full((ROWS,), 40.0))).log(), "k takes .* values in"
    ),
    "few, at odd places": (lambda: normal()[torch.arange(ROWS) % 90], "only 90 values in 2000"),
    "inflated zero": (
        lambda: torch.where(normal(1) > 1, 0.0, normal()), r"k is 0 in \d+ of 2000 distinct rows"
    ),
}  # fmt: skip
SMOOTH = {
    "normal": normal,
    "heavy tails": lambda: torch.distributions.Cauchy(0.0, 1.0).icdf(
        torch.rand(ROWS, generator=torch.Generator().manual_seed(0))
    ),
    "log-normal": lambda: (3 * normal()).exp(),
    "rounded finely": lambda: normal().round(decimals=3),
    "single precision": lambda: normal().float().double(),
    "sticky": sticky,
    "large whole numbers": lambda: (1000 * normal()).round(),
}


def columns(column):
    return torch.stack([column, normal(2)], 1)


@pytest.mark.parametrize("name", GRAINY)
def test_columns_without_a_density_are_named(name):
    make, message = GRAINY[name]
    with pytest.warns(SampleWarning, match=f"{message}.*Dequantise"):
        warn_of_grain(columns(make()), None, ("k", "x"))


@pytest.mark.parametrize("name", SMOOTH)
def test_draws_of_a_density_are_not_warned_of(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_grain(columns(SMOOTH[name]()), None, ("k", "x"))
