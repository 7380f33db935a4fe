r"""``sample_posterior``: hundreds of chains of a Pyro model in one batch.

Particles of tempered SMC are where chains start, so that they begin in the posterior, and in all of
its modes that these have seen; of one too narrow for that nothing tells. Chains move together, by
:mod:`pyro_stad.samplers.ensemble`, in the noise of the priors or in unconstrained parameters:
whichever moves farther, in a pilot, for the network calls that it takes. Moves are accepted or
refused, and so are jumps between the modes that particles have seen
(:mod:`pyro_stad.samplers.jumps`), so that what is drawn is exact for the density that is stated: in
noise the flow's own, or that of a generator of one step; in parameters that of the distilled
density, which ``correct`` carries on.

References:
    Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and
    localization: an improved R-hat.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_stad._checks import check_choice, check_positive, check_seed
from pyro_stad._context import own_context
from pyro_stad.errors import AccuracyWarning
from pyro_stad.infer.chains_run import ChainsRun, check_chains, read_forms
from pyro_stad.infer.sampled import SampledPosterior
from pyro_stad.model.forms import NoiseForm, ParameterForm
from pyro_stad.samplers import AbstractKernel

__all__ = ["sample_posterior"]

_MOST_BLOCKS = 40
_MANY_DIVERGENCES = 0.01
_FEW = 4  # effective draws of a chain


@own_context()
def sample_posterior(
    model: Callable[..., Any],
    *args: Any,
    num_chains: int = 64,
    num_samples: int = 250,
    min_ess: float | None = None,
    form: str = "auto",
    kernel: AbstractKernel | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> SampledPosterior:
    """Sample the posterior of a model by many chains at a time.

    Arguments:
        model: a Pyro model with continuous latent sites, as ``log_evidence`` takes it. One that
            does not broadcast over draws runs draw by draw, for many times the time.
        args, kwargs: what it is called with, its observations among them.
        num_chains: chains, an even number.
        num_samples: draws of each chain, after a warm-up.
        min_ess: effective draws, of all chains together, that the worst coordinate is to have;
            chains go on by as many draws again until it has. None for ``num_samples``.
        form: ``"noise"``, ``"parameters"``, or ``"auto"`` for that which a pilot prefers.
        kernel: how chains move; None for Hamiltonian dynamics.
        checkpoint: file that is written as chains go, and resumed from, to the same draws.
        seed: of everything random; the global generator is not touched.
        progress: whether to show a bar.

    Returns:
        The draws, by site and chain, with what is known of them.

    Raises:
        CheckpointError: if the checkpoint is damaged, or of another model or other options.
        EvidenceError: if tempering does not get from the prior to the posterior, or more than one
            percent of likelihoods are NaN.
        TypeError, ValueError: for a model that ``log_evidence`` does not take, priors that are no
            maps of normal noise apart; or options that can't be used.

    Warns:
        AccuracyWarning: if chains disagree (:mod:`pyro_stad.samplers.diagnostics`) or are too short
            to tell, more than a hundredth of the moves diverged, effective draws are fewer than
            ``min_ess``, the particles that they started from were stuck, a prior is a generator of
            one step, or likelihoods were NaN.
        UserWarning: if the model does not broadcast over draws.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> found = sample_posterior(model, torch.tensor(1.0), progress=False)
        >>> found.draws["x"].shape, abs(found.draws["x"].mean().item() - 0.8) < 0.05
        (torch.Size([64, 250]), True)
    """
    check_chains(num_chains, num_samples, kernel)
    check_choice(form, "form", ("auto", NoiseForm.name, ParameterForm.name))
    if min_ess is not None:
        check_positive(min_ess, "min_ess")
    started = time.perf_counter()
    read = read_forms(model, args, kwargs)
    run = ChainsRun(read, int(num_chains), form, kernel, check_seed(seed))
    run.start(None if checkpoint is None else Path(checkpoint), progress=progress)
    for block in range(1, _MOST_BLOCKS + 1):
        run.draw(block * num_samples, progress=progress)
        result = run.result(block * num_samples, time.perf_counter() - started)
        if min_ess is None or result.worst_ess >= min_ess:
            break
    _warn(result, min_ess)
    return result


def _warn(result: SampledPosterior, min_ess: float | None) -> None:
    told = list(result.warnings)
    if result.disagreeing:
        told.append(
            f"chains of {list(result.disagreeing)} disagree: the worst R-hat is "
            f"{result.worst_r_hat:.3f}"
        )
    elif result.worst_ess < _FEW * len(result.lp):
        told.append(
            f"chains are too short to tell whether they agree: {result.worst_ess:.0f} effective "
            f"draws of the worst coordinate, in {len(result.lp)} chains"
        )
    share = result.diverging.double().mean().item()
    if share > _MANY_DIVERGENCES:
        told.append(
            f"{share:.1%} of the moves diverged: where the posterior is narrowest it may not be "
            "reached; write the model in other parameters, or form='noise'"
        )
    if min_ess is not None and result.worst_ess < min_ess:
        told.append(
            f"there are {result.worst_ess:.0f} effective draws of the worst coordinate, and "
            f"min_ess = {min_ess:g} were asked for"
        )
    if told:
        warnings.warn(
            f"{'; '.join(told)}. Let chains go on (num_samples), or take more of them; many modes "
            "that are far apart keep the chains that started in them",
            AccuracyWarning,
            stacklevel=4,
        )
