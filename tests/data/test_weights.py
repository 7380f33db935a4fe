"""Weights: of any scale, as logarithms, by name or in an index; and what they are worth."""

import math

import numpy as np
import pandas
import pytest
import torch

from pyro_stad._weights import effective_size
from pyro_stad.data import as_samples
from tests.oracles import mixture_sample

ROWS = 200


def values():
    return mixture_sample(ROWS, 3)


def weights():
    return torch.rand(ROWS, generator=torch.Generator().manual_seed(1)) + 0.1


def indexed(x, w):
    index = pandas.MultiIndex.from_arrays([range(len(x)), w.numpy()], names=[None, "weights"])
    return pandas.DataFrame(x.numpy(), columns=["a", "b", "c"], index=index)


WAYS = {
    "as they are": lambda x, w: as_samples(x, weights=w),
    "array": lambda x, w: as_samples(x, weights=w.numpy().astype(">f8")),
    "tiny": lambda x, w: as_samples(x, weights=w * 1e-200),
    "denormal": lambda x, w: as_samples(x, weights=w * 1e-306),
    "huge": lambda x, w: as_samples(x, weights=w * 1e200),
    "near overflow": lambda x, w: as_samples(x, weights=w / w.max() * 1.7e308),
    "logarithms": lambda x, w: as_samples(x, log_weights=w.log() - 5e4),
    "large logarithms": lambda x, w: as_samples(x, log_weights=w.log() + 5e4),
    "index": lambda x, w: as_samples(indexed(x, w)),
    "column of a frame": lambda x, w: as_samples(
        pandas.DataFrame(torch.cat([x, w[:, None]], 1).numpy(), columns=[*"abcw"]), weights="w"
    ),
    "entry of a mapping": lambda x, w: as_samples({"x": x, "w": w}, weights="w"),
    "logarithms by name": lambda x, w: as_samples({"x": x, "w": w.log()}, log_weights="w"),
    "column of an array": lambda x, w: as_samples(
        torch.cat([x, w[:, None]], 1), names=[*"abcw"], weights="w"
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_gives_the_same_weights(name):
    x, w = values(), weights()
    read = WAYS[name](x, w)
    # The exponential of a number near 5e4 is off by its spacing there, 7e-12.
    torch.testing.assert_close(read.weights, w / w.max(), rtol=2e-11, atol=0)
    torch.testing.assert_close(read.values, x)


EQUAL = {
    "none": {},
    "ones": {"weights": torch.ones(ROWS)},
    "near overflow": {"weights": np.full(ROWS, 1e308)},
    "logarithms": {"log_weights": np.full(ROWS, -1e5)},
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_weights_are_none(name):
    assert as_samples(values(), **EQUAL[name]).weights is None


def test_minus_infinity_is_no_weight():
    log_weights = torch.zeros(ROWS)
    log_weights[3] = -math.inf
    read = as_samples(values(), log_weights=log_weights)
    assert torch.equal(read.values, values()[torch.arange(ROWS) != 3])


# Of w = i^40, (sum w)^2 / sum w^2 is 81 N / 41^2.
steep = torch.arange(ROWS, dtype=torch.float64) ** 40
BAD = {
    "wrong length": ({"weights": torch.ones(3)}, r"`weights` must have shape \(200,\); got \(3,\)"),
    "negative": ({"weights": -torch.ones(ROWS)}, "non-negative; 200 are .* `log_weights`"),
    "nan": ({"weights": torch.full((ROWS,), math.nan)}, "finite"),
    "all zero": ({"weights": torch.zeros(ROWS)}, "not all zero"),
    "masked": ({"weights": np.ma.masked_less(np.arange(ROWS), 5)}, "`weights` has 5 masked cells"),
    "both": ({"weights": torch.ones(ROWS), "log_weights": torch.zeros(ROWS)}, "not both"),
    "no such name": ({"weights": "w"}, "the array of them, or the name of a column; got 'w'"),
    "logarithms, all nothing": ({"log_weights": torch.full((ROWS,), -math.inf)}, "minus infinity"),
    "logarithms, nan": ({"log_weights": torch.full((ROWS,), math.nan)}, "largest is nan"),
    "logarithms, wrong length": ({"log_weights": torch.ones(3)}, "`log_weights` must have shape"),
    "degenerate logarithms": ({"log_weights": steep.log()}, "`log_weights` leave an effective"),
    **{
        f"degenerate, times {scale}": ({"weights": steep / steep.max() * scale}, "size of 10; at l")
        for scale in (1.0, 1e-200, 1e200)
    },
}


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_are_named(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        as_samples(values(), **options)


def test_weights_of_a_container_stand_alone():
    with pytest.raises(ValueError, match="weights of their own; pass no others"):
        as_samples(indexed(values(), weights()), weights=weights())


def test_effective_size_counts_equal_weights():
    assert effective_size(torch.tensor([1.0, 1.0, 0.0, 1.0])) == 3
    # Weights 1 and 1/2, n of each: (3n/2)^2 / (5n/4) = 9n/5.
    assert effective_size(torch.tensor([1.0, 0.5] * 50)) == pytest.approx(90)


def test_an_index_of_weights_by_another_name_is_used_or_named():
    x, w = torch.randn(200, 2).numpy(), torch.rand(200).numpy()
    frame = pandas.DataFrame(x, columns=["a", "b"])
    used = as_samples(frame.set_index(pandas.Index(w, name="weight")))
    np.testing.assert_allclose(used.weights / used.weights.sum(), w / w.sum(), rtol=1e-6)
    with pytest.raises(ValueError, match="the index of `samples` holds 'log_weights'; pass it on"):
        as_samples(frame.set_index(pandas.Index(np.log(w), name="log_weights")))
