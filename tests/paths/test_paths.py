"""Every path: derivatives, the inverse clock, the ends, and the conversions between faces."""

import math

import pytest
import torch

from pyro_stad.paths import PATHS, convert
from pyro_stad.registry import build, describe

NAMES = sorted(PATHS)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_match_autograd(name):
    path = PATHS[name]()
    t = torch.linspace(path.t_min, path.t_max, 41).requires_grad_()
    a, s, da, ds = path.coefficients(t)
    for value, derivative in ((a, da), (s, ds)):
        if value.requires_grad:
            (expected,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
            torch.testing.assert_close(derivative, expected, rtol=1e-10, atol=1e-12)
        else:
            assert derivative.abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_polar_form_and_rates(name):
    path = PATHS[name]()
    t = torch.linspace(path.t_min, path.t_max, 41).requires_grad_()
    a, s, _, _ = path.coefficients(t)
    p = path.polar(t)
    torch.testing.assert_close(p.scale * torch.cos(p.angle), a, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(p.scale * torch.sin(p.angle), s)
    (rate,) = torch.autograd.grad(p.angle.sum(), t, retain_graph=True)
    (log_rate,) = torch.autograd.grad(p.scale.log().sum(), t)
    torch.testing.assert_close(p.angle_rate, rate)
    torch.testing.assert_close(p.log_scale_rate, log_rate, rtol=1e-8, atol=1e-10)
    assert (p.angle_rate > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_clock_inverts(name):
    path = PATHS[name]()
    t = torch.linspace(path.t_min, path.t_max, 41)[:-1]
    torch.testing.assert_close(path.time_at_angle(path.polar(t).angle), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_ends_are_data_and_noise(name):
    low, high = PATHS[name]().angles()
    assert math.tan(low) == pytest.approx(0.002 if name == "edm" else 0.01, rel=0.02)
    assert math.tan(high) > 79


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("face", sorted(convert.TO_ANGULAR))
def test_faces_round_trip(name, face):
    path = PATHS[name]()
    t = torch.linspace(path.t_min, path.t_max, 12)[1:-1]
    x, w = torch.randn(10, 3) * path.polar(t).scale[:, None], torch.randn(10, 3)
    value = getattr(convert, f"angular_to_{face}")(path, t, x, w)
    torch.testing.assert_close(convert.TO_ANGULAR[face](path, t, x, value), w, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_description_builds_the_same_path(name):
    path = PATHS[name]()
    assert build(describe(path, "path"), "path") == path


def test_unknown_name_is_named():
    with pytest.raises(ValueError, match=r"`path` must be one of \['cosine', .*got 'cubic'"):
        build("cubic", "path")
