"""The field of images, and the head on its maps: derivatives, sizes, files, and what it learns."""

import math

import pytest
import torch

from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, ImageHead, Stein
from pyro_stad.fields import ImageField, PathField
from pyro_stad.learn import TrainingSettings
from pyro_stad.learn.clouds import ConditionalCloud
from pyro_stad.learn.distil import distil
from pyro_stad.learn.objectives import ExactLabels, HutchinsonLabels, SteinObjective
from pyro_stad.paths import OptimalTransport
from pyro_stad.registry import Source, build, describe


def made(shape=(1, 6, 6), width=4, levels=2, seed=0):
    """A field with random weights in all layers, those that start at zero too."""
    source = torch.Generator().manual_seed(seed)
    field = ImageField(OptimalTransport(), shape, width, levels, source).double()
    with torch.no_grad():
        for name, weight in field.named_parameters():
            if "second" in name or "leave" in name:
                weight.normal_(0, 0.3, generator=source)
    return field


def made_head(field, seed=1):
    head = ImageHead.for_field(field, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        head.turning.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return head


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 7, 5), (2, 9, 4)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_images_of_any_size_go_through(shape, levels):
    field = made(shape, levels=levels)
    x = torch.randn(5, *shape)
    t = torch.linspace(0.1, 1.4, 5)
    assert field.velocity(t, x).shape == x.shape
    # One of them alone is what it is among others.
    alone = torch.cat([field.velocity(t[i], x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(field.velocity(t, x), alone)
    velocity, residual = made_head(field).velocity_and_residual(field, t, x)
    torch.testing.assert_close(velocity, field.velocity(t, x))
    assert residual.shape == (5,)
    # Untrained it is N(0, I), to the last bit.
    fresh = ImageField(OptimalTransport(), shape, 4, levels, torch.Generator())
    assert (fresh.velocity(t.float(), x.float()) == 0).all()


def test_the_exact_trace_is_that_of_the_jacobian():
    field, x = made(), torch.randn(2, 1, 6, 6)
    t = torch.tensor([0.4, 1.1])
    found = Exact()(field, t, x)
    for index in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda y, i=index: field.velocity(t[i], y[None])[0].flatten(), x[index]
        )
        torch.testing.assert_close(found[index], jacobian.reshape(36, 36).trace())


def test_the_slope_of_the_head_is_its_derivative():
    field = made((2, 7, 5), levels=2)
    head, t = made_head(field), torch.tensor([0.3, 1.0, 1.4])
    x, tangent = torch.randn(2, 3, 2, 7, 5)
    value, slope = head.residual_and_slope(field, t, x, tangent)
    torch.testing.assert_close(value, head.velocity_and_residual(field, t, x)[1])
    step = 1e-5
    ahead, behind = (
        head.velocity_and_residual(field, t, x + sign * step * tangent)[1] for sign in (1, -1)
    )
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)
    # And its weights have gradients through both.
    (value + slope).sum().backward()
    assert all(weight.grad is not None for weight in head.parameters())
    assert all(link.second.weight.grad.abs().max() > 0 for link in [*head.down, *head.up])


def test_fields_and_heads_are_described_and_built():
    field = made((3, 8, 8), width=6, levels=3)
    described, tensors = describe(field, "field"), dict(field.state_dict())
    built = build(described, "field", Source(tensors))
    built.double().load_state_dict(tensors)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(
        built.velocity(torch.tensor(0.7), x), field.velocity(torch.tensor(0.7), x)
    )
    for wrong in ({"width": 10**9}, {"levels": 12}, {"event_shape": [1, 8, 8]}):
        with pytest.raises(ValueError, match="do not fit the tensors of the file"):
            build({**described, **wrong}, "field", Source(tensors))
    head = Stein(made_head(field))
    assert describe(head, "divergence")["name"] == "stein-image-head"


def test_slips_have_messages():
    with pytest.raises(ValueError, match=r"an image has channels, height and width; got an event"):
        ImageField(OptimalTransport(), (8, 8), 4, 2)
    with pytest.raises(ValueError, match=r"`levels` halve an image 4 times, and \(8, 8\) is too"):
        ImageField(OptimalTransport(), (1, 8, 8), 4, 5)
    plain = PathField(OptimalTransport(), features=3, width=4, depth=1)
    with pytest.raises(TypeError, match="ImageHead needs a field of images"):
        ImageHead.for_field(plain)


@pytest.mark.parametrize("objective", [SteinObjective(), ExactLabels(), HutchinsonLabels(4)])
def test_every_objective_teaches_the_divergence(objective):
    """Of the spread of the divergence, at points of all angles, less than two thirds are left."""
    field = made((1, 4, 4), width=4, levels=2).float()
    source = torch.Generator().manual_seed(2)
    data = Batches(torch.randn(2000, 1, 4, 4, generator=source, dtype=torch.float32))
    head = ImageHead.for_field(field, source)
    cloud = ConditionalCloud(field, data)
    settings = TrainingSettings(
        250, batch_size=64, learning_rate=2e-2, clip_norm=100.0, patience=0, warmup=20,
        validate_every=250, ema_decay=0.97,
    )  # fmt: skip
    distil(head, field, objective, cloud, cloud, settings, generator=source, progress=False)
    points = cloud.draw(400, source)
    with torch.no_grad():
        exact = Exact()(field, points.t, points.x)
        found = Stein(head)(field, points.t, points.x)
    assert (found - exact).std() < 0.67 * exact.std()
    assert (found - exact).mean().abs() < 0.2 * exact.square().mean().sqrt()


def test_labels_of_images_are_the_exact_ones_with_as_many_probes_as_pixels():
    field, x = made((1, 4, 4)), torch.randn(6, 1, 4, 4)
    head = made_head(field)
    points = ConditionalCloud(field, Batches(x)).draw(6, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    losses = [
        objective(head, field, points, generator)
        for objective in (ExactLabels(), HutchinsonLabels(16), HutchinsonLabels(15))
    ]
    torch.testing.assert_close(losses[0], losses[1])
    # With one fewer, two of the pixels share a probe: nearly the same.
    assert (losses[2] - losses[0]).abs().max() < 0.5 * math.sqrt(losses[0].max().item()) + 0.1


def test_half_precision_is_for_training_alone():
    """Convolutions in bfloat16 are right to three digits, have gradients, and can be left again."""
    field = made((1, 6, 6)).float()
    x, t = torch.randn(8, 1, 6, 6).float(), torch.tensor(0.7).float()
    full = field.velocity(t, x)
    field.net.precision = torch.bfloat16
    half = field.velocity(t, x)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert (half - full).abs().max() < 0.02 * full.abs().max()
    half.square().mean().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in field.parameters())
    field.net.precision = None
    assert torch.equal(field.velocity(t, x), full)


@pytest.mark.parametrize(("shape", "levels"), [((3, 7, 5), 3), ((2, 9, 4), 2), ((1, 6, 6), 1)])
@pytest.mark.parametrize("shared", [False, True])
def test_products_by_hand_are_those_of_autograd(shape, levels, shared):
    """Of tangents that all images share, and of their own; at odd sizes and of several channels."""
    field, t = made(shape, levels=levels), torch.tensor([0.3, 0.9, 1.4])
    x = torch.randn(3, *shape)
    tangents = torch.randn(4, 1 if shared else 3, *shape)
    velocity, products = field.jacobian_products(t, x, tangents)
    torch.testing.assert_close(velocity, field.velocity(t, x))
    for tangent, product in zip(tangents, products):
        _, wanted = torch.func.jvp(
            lambda y: field.velocity(t, y), (x,), (tangent.expand_as(x).contiguous(),)
        )
        torch.testing.assert_close(product, wanted)
