"""A prior of a network of somebody else: its divergence is distilled; the network stays."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import asdict
from importlib.metadata import version

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pyro_stad._checks import check_seed
from pyro_stad._context import own_context
from pyro_stad.data import Layout, split
from pyro_stad.data.standardise import Rescale
from pyro_stad.density.prior import FlowPrior
from pyro_stad.errors import AccuracyWarning
from pyro_stad.fields import ForeignField
from pyro_stad.files.foreign import said
from pyro_stad.fitting.divergence import prior_of
from pyro_stad.fitting.settings import FitSettings, resume_folder, settings_of
from pyro_stad.fitting.stages import FitStages

__all__ = ["distil_divergence"]

_LEAST = 100


@own_context()
def distil_divergence(
    field: ForeignField,
    samples: Tensor,
    *,
    budget: str | FitSettings = "standard",
    seed: int = 0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> FlowPrior:
    """Return the prior of a network of somebody else, with a divergence that is distilled here.

    A network of its own learns the divergence, by the Stein objective and then by regression on
    probes: products of the network's Jacobian, which takes automatic derivatives of it.

    Arguments:
        field: the network, as ``from_noise`` and its sisters wrap it; without a context.
        samples: data in the units of the network, ``(N, *event_shape)``, on its device and of its
            dtype; at least 100. A tenth is held out for the calibration.
        budget: a name in ``pyro_stad.BUDGETS`` or a ``FitSettings``: of images the stages and sizes
            ``image_...``, of vectors ``stein``, ``polish``, ``width`` and ``depth``.
        seed: seed of everything random.
        progress: whether to show progress bars.
        resume: folder for the state of an unfinished run; one that was killed goes on from it.

    Returns:
        The prior, calibrated on a few dozen samples. ``save`` writes all but the network, and
        ``load(path, field=field)`` puts it back.

    Raises:
        TypeError, ValueError: for a field or samples that can't be used.

    Warns:
        AccuracyWarning: for a tolerance that is not met.

    References:
        Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486).
    """
    _check(field, samples)
    stages = FitStages(
        settings_of(budget), check_seed(seed), resume_folder(resume), progress=progress
    )
    known = field.settings(), asdict(stages.settings), seed, samples.dtype, version("pyro-stad")
    digest = hashlib.sha256(repr(known).encode())
    for part in (samples.detach().cpu(), said(field, samples)):
        digest.update(part.contiguous().numpy().tobytes())
    stages.identity = digest.hexdigest()
    share, source = stages.settings.validation_fraction, stages.generator("split", samples)
    kept, held = split(samples.detach(), None, share, source)
    shape = field.event_shape
    whiten = Rescale(samples.new_zeros(shape), samples.new_ones(shape))
    layout = Layout.of([f"x[{i}]" for i in range(shape[0])]) if len(shape) == 1 else None
    prior = prior_of(stages, field, kept, held, whiten, len(samples), layout)
    for trouble in prior.calibration.troubles if prior.calibration else ():
        warnings.warn(trouble, AccuracyWarning, stacklevel=3)
    return prior


def _check(field: object, samples: object) -> None:
    if not isinstance(field, ForeignField):
        raise TypeError(
            f"`field` must be what from_velocity, from_score, from_noise or from_denoiser make of "
            f"a network; got {type(field).__name__}"
        )
    if field.context_shape:
        raise ValueError("`field` must not depend on a context; got one that does")
    shape = tuple(field.event_shape)
    if len(shape) not in (1, 3):
        raise ValueError(f"`field` must have vectors or images for events; got shape {shape}")
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        kind = getattr(samples, "dtype", type(samples).__name__)
        raise TypeError(f"`samples` must be a tensor of floating-point numbers; got {kind}")
    if samples.shape[1:] != shape or len(samples) < _LEAST:
        raise ValueError(
            f"`samples` must have shape (N, {', '.join(map(str, shape))}) with N of at least "
            f"{_LEAST}; got {tuple(samples.shape)}"
        )
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("`samples` must be finite; drop those that are not")
    like = next(field.parameters(), samples)
    if (like.dtype, like.device) != (samples.dtype, samples.device):
        raise ValueError(
            f"`samples` must be of the dtype and device of the network, {like.dtype} on "
            f"{like.device}; got {samples.dtype} on {samples.device}"
        )
    for module in field.modules():
        if module.training and isinstance(module, _DropoutNd | _BatchNorm):
            raise ValueError(
                f"`field` must be at rest: its network has a {type(module).__name__} in training "
                "mode, which is another function at every call. Call .eval() on it"
            )
