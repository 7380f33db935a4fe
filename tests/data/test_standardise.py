"""Whitening: a bijection whose rows don't see each other."""

import pytest
import torch

from pyro_stad._rows import RowProduct
from pyro_stad.data import Standardise

SIZES = [1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 33]


def affine(size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(size)
    tril = torch.randn(size, size, generator=generator, dtype=dtype).tril(-1)
    return Standardise(torch.arange(size).to(dtype), 0.2 * tril + torch.eye(size, dtype=dtype))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_affine_map_and_back(size):
    whiten, x = affine(size), torch.randn(3, 5, size)
    theta = whiten(x)
    torch.testing.assert_close(theta, whiten.loc + x @ whiten.scale_tril.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(whiten.inv(theta), x, rtol=0, atol=1e-12)
    log_det = torch.linalg.slogdet(whiten.scale_tril)[1]
    torch.testing.assert_close(whiten.log_abs_det_jacobian(x, theta), log_det.expand(3, 5))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (2, 0, 4), (1, 4)])
def test_any_number_of_rows_will_do(shape):
    whiten, x = affine(4), torch.randn(shape)
    assert whiten(x).shape == whiten.inv(x).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_a_row_is_the_same_in_every_batch(size, dtype):
    whiten, x = affine(size, dtype), torch.randn(37, size, dtype=dtype)
    for function in (whiten, whiten.inv):
        together = function(x)
        for part in (1, 5, 16):
            assert torch.equal(torch.cat([function(rows) for rows in x.split(part)]), together)
        assert torch.equal(function(x.flip(0)).flip(0), together)


def test_products_are_differentiated_twice_and_under_vmap():
    product = RowProduct(torch.randn(3, 3))
    x = torch.randn(4, 3, requires_grad=True)
    assert torch.autograd.gradcheck(product, x)
    assert torch.autograd.gradgradcheck(product, x)
    torch.testing.assert_close(torch.vmap(product)(x), product(x), rtol=0, atol=1e-12)
