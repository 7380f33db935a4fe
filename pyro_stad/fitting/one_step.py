"""``distil_one_step``: a prior, or a conditional flow, becomes a generator of one network call.

By regression on the flow's own pairs of noise and data, by EM distillation, or by the first and
then the second; see :mod:`pyro_stad.learn.em`. All are judged by draws: the energy distance to
those of the flow, of noise that no training has seen, also decides when to stop. Given a context,
what is compared are pairs of draw and context.
"""

from __future__ import annotations

import copy
import os
from typing import Any, TypedDict, Unpack, overload

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_finite, check_seed, check_value
from pyro_stad._context import own_context
from pyro_stad.density import (
    ConditionalFlow,
    ConditionalGenerator,
    FlowPrior,
    GivenPrior,
    OneStepGenerator,
)
from pyro_stad.fields import (
    AbstractAngularField,
    AbstractTrunkField,
    ConditionalPathField,
    ImageField,
    PathField,
)
from pyro_stad.fitting.one_step_run import OneStepLaw, OneStepRun, law_of
from pyro_stad.learn import EMSettings
from pyro_stad.paths import VPCosine
from pyro_stad.transport import OneStep

__all__ = ["ONE_STEP_METHODS", "distil_one_step"]

ONE_STEP_METHODS = ("regression", "em", "both")
_WIDTH, _DEPTH = 128, 3
_EM_RATE, _SHARE = 1e-3, 0.5  # the rate of EM, and its share of the steps after regression


class _Options(TypedDict, total=False):
    method: str
    em: EMSettings | None
    steps: int
    batch_size: int
    pairs: int
    width: int | None
    samples: Tensor | None
    contexts: Tensor | None
    seed: int
    progress: bool
    resume: str | os.PathLike[str] | None


@overload
def distil_one_step(prior: FlowPrior, **options: Unpack[_Options]) -> OneStepGenerator: ...
@overload
def distil_one_step(
    prior: ConditionalFlow, **options: Unpack[_Options]
) -> ConditionalGenerator: ...
@own_context()
def distil_one_step(
    prior: FlowPrior | ConditionalFlow,
    *,
    method: str = "regression",
    em: EMSettings | None = None,
    steps: int = 3000,
    batch_size: int = 512,
    pairs: int = 50_000,
    width: int | None = None,
    samples: Tensor | None = None,
    contexts: Tensor | None = None,
    seed: int = 0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> OneStepGenerator | ConditionalGenerator:
    """Distil a prior, or a conditional flow, into a generator of one network call.

    No data are needed: the prior draws them. Where there are some, regression learns from them too:
    the flow's way back says which noise each is drawn from.

    Arguments:
        prior: the prior, or the flow that makes one of any context.
        method: ``"regression"`` on pairs of noise and draws of the flow; ``"em"``, EM distillation,
            for fields on a Gaussian path; ``"both"``, the one and then the other.
        em: how latent variables are inferred, or None for the defaults.
        steps: optimiser steps.
        batch_size: draws a step.
        pairs: of noise and draws, that regression learns from.
        width: units of each of three hidden layers of the generator; None for 128, and for EM, or a
            conditional flow, for a copy of the field's own network, whatever that has. Of images it
            is always such a copy.
        samples: of the prior's law, ``(N, D)``, that regression learns from beside; or None.
        contexts: of a conditional flow, what is to be learned given, ``(N, C)``; None for those of
            its fit that it keeps.
        seed: of everything random.
        progress: whether to show bars.
        resume: folder for the state of an unfinished run; one that was killed goes on from it.

    Raises:
        TypeError: if ``prior`` is no prior of this package, or was given its context, or its field
            is on no path and ``method`` needs a score.
        ValueError: for settings or contexts that can't be used.
        TrainingError: if nothing finite was reached.

    References:
        Xie et al. (2024), EM Distillation for One-Step Diffusion Models.
    """
    _check(prior, method)
    if em is not None and not isinstance(em, EMSettings):
        raise TypeError(f"`em` must be an EMSettings or None; got {em!r:.80}")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("pairs", pairs)):
        check_count(value, name)
    if width is not None:
        check_count(width, "width")
    law = law_of(prior, contexts)
    _check_score(law.field, method)
    run = OneStepRun(law, check_seed(seed), batch_size, resume, progress=progress)
    one_step = _network_for(law, method, width, run.source("first weights")).to(law.like)
    histories = []
    if method != "em":
        settings = run.settings(steps, 2e-3, "soap")
        histories.append(run.by_pairs(one_step, pairs, settings, _given_pairs(prior, samples)))
    if method != "regression":
        count = steps if method == "em" else max(1, int(_SHARE * steps))
        settings = run.settings(count, _EM_RATE, "adam")
        histories.append(run.by_em(one_step, em or EMSettings(), settings))
    made = run.judged(one_step, method, histories)
    if isinstance(prior, ConditionalFlow):
        return ConditionalGenerator(prior, one_step, made)
    return OneStepGenerator(prior.expand(torch.Size()), one_step, made)


def _check(prior: Any, method: str) -> None:
    check_choice(method, "method", ONE_STEP_METHODS)
    if isinstance(prior, GivenPrior) or not isinstance(prior, FlowPrior | ConditionalFlow):
        raise TypeError(
            "`prior` must be a FlowPrior without a context, or a ConditionalFlow; got "
            f"{prior!r:.80}"
        )


def _given_pairs(prior: Any, samples: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Return the noise of samples, and the samples, whitened."""
    if samples is None:
        return None
    if isinstance(prior, ConditionalFlow):
        raise TypeError("`samples` are of a prior; of a ConditionalFlow its own draws are learned")
    points = check_value(samples, prior.like, argument="samples")
    check_finite(points, prior.names, argument="samples")
    with torch.no_grad():
        white = prior.whiten(points).reshape(-1, *prior.like.shape)
        return prior.transport.pull(white), white


def _check_score(field: Any, method: str) -> None:
    if method != "regression" and not field.has_score:
        raise TypeError(
            f"`method` {method!r} needs a field on a Gaussian path, whose score is known; this "
            f"prior has a {type(field).__name__}. Use method='regression'"
        )


def _network_for(
    law: OneStepLaw, method: str, width: int | None, source: torch.Generator
) -> OneStep:
    """Return a generator: the denoiser of a field, or a small network that knows nothing of it.

    EM starts from the denoiser. Regression does not need it: on mixtures in 8 and 16 dimensions a
    network of 128 units has drawn as truly as a copy of the field's, whose size may be any. Far out
    it has the field's gate, so that tails are left where the flow leaves them.
    """
    field = law.field
    shows = isinstance(field, AbstractAngularField) and isinstance(field, AbstractTrunkField)
    if shows and width is None and (method != "regression" or law.contexts is not None):
        return OneStep(copy.deepcopy(field).requires_grad_(True))
    if isinstance(field, ImageField):
        # A network of images is no small one, and the field's own is half of the way.
        if width is not None:
            raise ValueError("`width` is not for images: their generator is a copy of the network")
        return OneStep(copy.deepcopy(field).requires_grad_(True))
    if len(field.event_shape) != 1:
        raise TypeError(
            "`prior` must be of vectors, or of images by an ImageField: there is no network for "
            f"events of shape {tuple(field.event_shape)} of a {type(field).__name__}"
        )
    units, gate = _WIDTH if width is None else width, copy.deepcopy(getattr(field, "gate", None))
    path, features = VPCosine(), field.features
    if law.contexts is None:
        return OneStep(PathField(path, features, units, _DEPTH, source, gate))
    given = law.contexts.shape[1]
    return OneStep(ConditionalPathField(path, features, given, units, _DEPTH, source, gate))
