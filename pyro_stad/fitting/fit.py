"""``fit``: the door from samples to a prior, or with a context to a conditional flow.

The chains behind it are in :mod:`pyro_stad.fitting.prior` and :mod:`pyro_stad.fitting.conditional`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack, overload

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_device, check_seed
from pyro_stad._context import own_context
from pyro_stad.data import (
    Bounds,
    Samples,
    as_samples,
    parse_bounds,
    take_in,
)
from pyro_stad.data.pairs import Pairs
from pyro_stad.density.conditional import ConditionalFlow
from pyro_stad.density.prior import FlowPrior
from pyro_stad.fitting.conditional import fit_conditional
from pyro_stad.fitting.images import fit_images
from pyro_stad.fitting.prior import fit_prior
from pyro_stad.fitting.settings import FitSettings, resume_folder, settings_of
from pyro_stad.fitting.stages import FitStages
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import build

__all__ = ["fit"]

_MEMBERS, _MOST_MEMBERS = 5, 100


class _Options(TypedDict, total=False):
    """The options of ``fit``, for those who read types."""

    names: Sequence[str] | None
    weights: Any
    log_weights: Any
    var_names: Sequence[str] | None
    bounds: Any
    context_names: Sequence[str] | None
    context_bounds: Any
    network: str
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    path: str | AbstractPath
    budget: str | FitSettings
    members: int
    seed: int
    progress: bool
    resume: str | os.PathLike[str] | None
    device: torch.device | str
    dtype: torch.dtype


@overload
def fit(samples: Any, *, context: None = ..., **options: Unpack[_Options]) -> FlowPrior: ...
@overload
def fit(samples: Any, *, context: Any, **options: Unpack[_Options]) -> ConditionalFlow: ...
@own_context()
def fit(
    samples: Any,
    *,
    context: Any = None,
    names: Sequence[str] | None = None,
    weights: Any = None,
    log_weights: Any = None,
    var_names: Sequence[str] | None = None,
    bounds: Any = None,
    context_names: Sequence[str] | None = None,
    context_bounds: Any = None,
    network: str = "perceptron",
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    path: str | AbstractPath = "ot",
    budget: str | FitSettings = "standard",
    members: int = _MEMBERS,
    seed: int = 0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FlowPrior | ConditionalFlow:
    """Learn a prior from samples; or, with a context, the law of samples given it.

    Arguments:
        samples: a tensor, numpy array or pandas DataFrame with shape ``(N, D)``, a mapping of
            names to arrays ``(N, ...)``, an ArviZ posterior, or what ``read_chain`` returns; at
            least 100 distinct rows.
        context: what each sample depends on, a row for each, in any of the same containers. The
            result is then a ``ConditionalFlow``, which makes a prior of any context.
        names: names of the columns of a tensor or array.
        weights: one non-negative weight per row, as nested samplers give, of any scale; or the
            name of the column that holds them.
        log_weights: the logarithms of the weights, up to a constant, in their place.
        var_names: the variables to keep.
        bounds: ``{name: (low, high)}``, or one pair per coordinate; None leaves a side open. An
            angle is ``"periodic"``, with period two pi, or the number that is its period, or
            ``pyro_stad.data.Periodic(low, high)``; its density is periodic, its draws lie in
            ``[low, high)``: from zero on if no sample is negative, else about zero. The
            bounds that a chain brings hold for what a mapping does not name; an empty one takes
            none at all. For a cut that is no box, see ``FlowPrior.truncate``.
        context_names: names of the columns of a context that is a tensor or array.
        context_bounds: bounds of the context, as ``bounds``; no angles.
        network: ``"perceptron"``, or ``"unet"`` for images, ``(N, H, W)`` or ``(N, C, H, W)``: grey
            values of dtype uint8, which are made continuous in the unit interval, or floating-point
            numbers. The prior's events are then ``(C, H, W)``. It has no members, bounds, names or
            weights, and is calibrated on a few dozen images.
        augment: for images, a function of a batch of them, ``(B, C, H, W)`` in the unit interval if
            they came as whole numbers, and a ``torch.Generator``, that returns as many of the same
            shape: shifted, turned, with noise. The law of what it returns is learned.
        path: a name in ``pyro_stad.paths.PATHS``, a path object, or ``"cnf"`` for a free-form
            continuous normalising flow trained by maximum likelihood.
        budget: a name in ``pyro_stad.BUDGETS`` or a ``FitSettings``.
        members: refits to bootstrap resamples, by which the error of learning is known:
            ``FlowPrior.learning_error``, and the errors of evidences and posteriors. Two at the
            least, or none: 0 leaves it unknown. A conditional flow has none.
        seed: seed of everything random; the global generator is not touched.
        progress: whether to show progress bars.
        resume: folder for the state of an unfinished fit; a fit that was killed goes on from it.
        device: where to train and where the prior will live.
        dtype: floating-point type of the prior.

    Returns:
        The prior, or the conditional flow, calibrated against exact traces on held-out samples:
        see ``prior.summary()``.
        Repeated rows count as weights, and of a chain whole stretches are held out.

    Raises:
        TypeError, ValueError: for samples or settings that can't be used; columns are named.
        TrainingError: if training diverged from the start.

    Warns:
        SampleWarning: for few effective rows, and for columns, or images, that have no density.
        AccuracyWarning: for a tolerance that is not met, and for a prior that does not describe
            held-out samples; ``summary()`` says the same.

    References:
        Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486).
    """
    check_choice(network, "network", ("perceptron", "unet"))
    settings = settings_of(budget)
    seed = _check_options(path, members, seed, dtype)
    device = check_device(device)
    if network == "unet":
        given = dict(
            context=context, names=names, weights=weights, log_weights=log_weights, bounds=bounds,
            var_names=var_names, context_names=context_names, context_bounds=context_bounds,
        )  # fmt: skip
        _check_images(path, augment, members, given)
        stages = FitStages(settings, seed, resume_folder(resume), progress=progress)
        return fit_images(samples, path, stages, augment, device, dtype)
    if augment is not None:
        raise ValueError("`augment` is for images, with network='unet'; leave it out")
    if context is not None:
        pairs = Pairs.of(
            samples, context, names=names, weights=weights, log_weights=log_weights,
            var_names=var_names, bounds=bounds, context_names=context_names,
            context_bounds=context_bounds, dtype=dtype,
        )  # fmt: skip
        stages = FitStages(
            settings, seed, resume_folder(resume), progress=progress, context=pairs.width
        )
        return fit_conditional(pairs, path, stages, device, dtype)
    if context_names is not None or context_bounds is not None:
        raise ValueError("`context_names` and `context_bounds` are for a `context`; got none")
    checked = as_samples(
        samples, names=names, weights=weights, log_weights=log_weights, var_names=var_names
    )
    limits = _limits(bounds, checked)
    taken = take_in(checked, limits, dtype)
    stages = FitStages(settings, seed, resume_folder(resume), progress=progress)
    return fit_prior(taken, limits, path, stages, members, device, dtype)


def _limits(bounds: Any, checked: Samples) -> Bounds | None:
    """Return the bounds of the user, and where there are none, those of the chain."""
    if bounds is None:
        bounds = checked.bounds
    elif isinstance(bounds, Mapping) and bounds:
        bounds = {**checked.bounds, **bounds}
    return parse_bounds(bounds, checked.layout, checked.values)


def _check_options(path: Any, members: Any, seed: Any, dtype: Any) -> int:
    """Refuse, before any work, what would only fail or mislead later; return the seed."""
    if not isinstance(path, AbstractPath) and path != "cnf":
        if not isinstance(path, str):
            raise TypeError(f"`path` must be a name or a path object; got {path!r}")
        build(path, "path")
    check_count(members, "members", least=0, most=_MOST_MEMBERS)
    if members == 1:
        raise ValueError("`members` must be 0, or at least 2: one has no spread; got 1")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64; got {dtype}")
    return check_seed(seed)


def _check_images(path: Any, augment: Any, members: int, given: dict[str, Any]) -> None:
    """Refuse what images can't have."""
    if members not in (0, _MEMBERS):
        raise ValueError(f"`members` is not for images, which have none; got {members}")
    if not (augment is None or callable(augment)):
        raise TypeError(f"`augment` must be a function (images, generator); got {augment!r}")
    if path == "cnf":
        raise ValueError("`path` of images must be a Gaussian path; got 'cnf'")
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"`{name}` is not for images (network='unet'); leave it out")
