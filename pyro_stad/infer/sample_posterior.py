r"""``sample_posterior``: hundreds of chains of a Pyro model in one batch.

Particles of tempered SMC are where chains start, so that they begin in the posterior, and in all of
its modes. They move together, by :mod:`pyro_stad.samplers.ensemble`, in the noise of the priors or
in unconstrained parameters: whichever moves farther, in a pilot, for the network calls that it
takes. Moves are accepted or refused, so that what is drawn is exact for the density that is stated:
in noise the flow's own, in parameters that of its distilled density, which ``correct`` carries on.

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
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_positive, check_seed
from pyro_stad._context import own_context
from pyro_stad._progress import progress_bar
from pyro_stad._random import generator
from pyro_stad.errors import AccuracyWarning
from pyro_stad.infer.sampled import SampledPosterior, summed_up
from pyro_stad.model.forms import AbstractForm, NoiseForm, ParameterForm, has_parameters
from pyro_stad.model.joint import JointDensity, checked_joint
from pyro_stad.model.noise import LatentProblem, NoMapError
from pyro_stad.model.predictive import prior_draws
from pyro_stad.model.vectorised import VectorisedModel
from pyro_stad.samplers import AbstractKernel, Ensemble, Hamiltonian, temper, temper_draws

__all__ = ["sample_posterior"]

_PILOTS, _PILOT, _LENGTH = 16, (15,), 15  # chains of each half, warm-up, moves
_FEWEST_PARTICLES = 100
_MOST_BLOCKS = 40
_EVERY = 50  # draws between two states in a file


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
        EvidenceError: if tempering does not get from the prior to the posterior.
        TypeError, ValueError: for a model that ``log_evidence`` does not take, priors that are no
            maps of normal noise apart; or options that can't be used.

    Warns:
        AccuracyWarning: if chains disagree (:mod:`pyro_stad.samplers.diagnostics`), or there are
            fewer effective draws than ``min_ess``.
        UserWarning: if the model does not broadcast over draws.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> found = sample_posterior(model, torch.tensor(1.0), progress=False)
        >>> found.draws["x"].shape, abs(found.draws["x"].mean().item() - 0.8) < 0.05
        (torch.Size([64, 250]), True)
    """
    _check(num_chains, num_samples, min_ess, form)
    started = time.perf_counter()
    read = _read(model, args, kwargs)
    run = _Run(read, num_chains, form, kernel, check_seed(seed))
    run.start(None if checkpoint is None else Path(checkpoint), progress=progress)
    for block in range(1, _MOST_BLOCKS + 1):
        run.draw(block * num_samples, progress=progress)
        result = run.result(time.perf_counter() - started)
        if min_ess is None or result.worst_ess >= min_ess:
            break
    _warn(result, min_ess)
    return result


def _check(num_chains: Any, num_samples: Any, min_ess: Any, form: Any) -> None:
    check_count(num_chains, "num_chains", least=8)
    if num_chains % 2:
        raise ValueError(f"`num_chains` must be even, for chains learn in halves; got {num_chains}")
    check_count(num_samples, "num_samples", least=10)
    check_choice(form, "form", ("auto", NoiseForm.name, ParameterForm.name))
    if min_ess is not None:
        check_positive(min_ess, "min_ess")


class _Read(NamedTuple):
    """A model, as a likelihood of noise if its priors are maps of that, and its forms by name."""

    model: VectorisedModel
    problem: LatentProblem | None
    forms: dict[str, AbstractForm]


def _read(model: Callable[..., Any], args: Any, kwargs: Any) -> _Read:
    try:
        problem = LatentProblem(model, *args, **kwargs)
    except NoMapError:
        read = VectorisedModel(model, args, kwargs)
        form = ParameterForm(checked_joint(read))
        return _Read(read, None, {form.name: form})
    forms: list[AbstractForm] = [NoiseForm(problem)]
    if has_parameters(problem.model):
        forms.append(ParameterForm(JointDensity(problem.model)))
    return _Read(problem.model, problem, {form.name: form for form in forms})


class _Run:
    """Chains of one model, from the prior to the last draw."""

    def __init__(
        self, read: _Read, num_chains: int, form: str, kernel: AbstractKernel | None, seed: int
    ) -> None:
        self.read, self.num_chains, self.seed = read, num_chains, seed
        self.kernel = Hamiltonian() if kernel is None else kernel
        like = read.model.like
        self.source = generator(seed, "posterior chains", like.device)
        self.forms = read.forms
        if form != "auto" and form not in self.forms:
            raise ValueError(
                f"`form` {form!r} is none of this model, which has {list(self.forms)}: in noise "
                "priors have to be maps of normal noise; parameters have no density where one is "
                "an angle, or drawn by a generator of one step"
            )
        self.wanted = form
        self.pilot: dict[str, float] = {}
        # Each (C, K + 1): where chains were, and the log-density there.
        self.draws: list[Tensor] = []
        self.identity = {
            "seed": seed, "wanted": form, "kernel": repr(self.kernel), "chains": num_chains,
            "data": read.model.data, "dtype": str(like.dtype),
        }  # fmt: skip

    def start(self, file: Path | None, *, progress: bool) -> None:
        """Take chains to the posterior, or take up those of a file."""
        self.file = file
        if file is not None and file.exists():
            self._take_up(file)
            return
        starts = self._starts(progress=progress)
        self.form = self._chosen(starts)
        self.chains = self._ensemble(self.form, starts[self.form.name])
        self.chains.warm_up()

    def _starts(self, *, progress: bool) -> dict[str, Tensor]:
        """Return where chains start in each form, ``(1, 2, C / 2, K)``."""
        half = self.num_chains // 2
        particles = max(_FEWEST_PARTICLES, half)
        if self.read.problem is None:
            return self._from_prior(particles, half, progress=progress)
        runs = temper(self.read.problem, particles, 2, self.source, progress=progress)
        noise = runs.u[0, :, :half]
        with torch.no_grad():
            values = self.read.problem.values(noise.flatten(0, 1))
        return {
            name: noise[None] if isinstance(form, NoiseForm) else self._halves(form, values)
            for name, form in self.forms.items()
        }

    def _from_prior(self, particles: int, half: int, *, progress: bool) -> dict[str, Tensor]:
        """Return starts in parameters, of a prior that is no map of noise."""
        (form,) = self.forms.values()
        assert isinstance(form, ParameterForm)
        values = prior_draws(self.read.model, 2 * particles, self.seed)
        draws = form.from_values(values).reshape(2, particles, form.size)
        runs = temper_draws(form.density.parts, draws, self.source, progress=progress)
        return {form.name: runs.u[:, :, :half]}

    def _halves(self, form: AbstractForm, values: dict[str, Tensor]) -> Tensor:
        rows = cast(ParameterForm, form).from_values(values)
        return rows.reshape(1, 2, self.num_chains // 2, form.size)

    def draw(self, count: int, *, progress: bool) -> None:
        """Let chains go on until there are ``count`` draws of each."""
        with progress_bar("draws", count, shown=progress, done=len(self.draws)) as bar:
            while len(self.draws) < count:
                self.chains.step()
                self.draws.append(torch.cat([self.chains.x[0], self.chains.log_p[0, :, None]], 1))
                bar.update()
                if self.file is not None and len(self.draws) % _EVERY == 0:
                    self._keep(self.file)

    def result(self, seconds: float) -> SampledPosterior:
        """Return what there is."""
        rows = torch.stack(self.draws, 1)
        known = {
            "lp": rows[..., -1], "pilot": self.pilot, "kernel": repr(self.kernel),
            "acceptance": self.chains.acceptance.item(),
            "evaluations": int(self.chains.counts[2].item()),
            "seconds": seconds,
        }  # fmt: skip
        return summed_up(self.form, rows[..., :-1], known)

    def _chosen(self, starts: dict[str, Tensor]) -> AbstractForm:
        """Return the form that was asked for, or that moves farther for a network call."""
        if self.wanted != "auto":
            return self.forms[self.wanted]
        if len(self.forms) == 1:
            return next(iter(self.forms.values()))
        for name, form in self.forms.items():
            few = starts[name][:, :, :_PILOTS]
            chains = self._ensemble(form, few)
            chains.warm_up(_PILOT)
            before, jumps = chains.counts[2].item(), []
            for _ in range(_LENGTH):
                x = chains.x[0]
                chains.step()
                jumps.append((chains.x[0] - x).square().mean(0) / x.var(0))
            moved = torch.stack(jumps).sum(0).min().item()
            calls = (chains.counts[2].item() - before) / few[..., 0].numel()
            self.pilot[name] = moved / (calls * form.price)
        return self.forms[max(self.pilot, key=lambda name: self.pilot[name])]

    def _ensemble(self, form: AbstractForm, start: Tensor) -> Ensemble:
        return Ensemble(form.of_objects, start, self.kernel, self.source)

    def _keep(self, file: Path) -> None:
        known = {"form": self.form.name, "pilot": self.pilot}
        self.chains.save(file, self.draws, self.identity, known)

    def _take_up(self, file: Path) -> None:
        known = Ensemble.known(file, self.identity)
        self.form, self.pilot = self.forms[known["form"]], known["pilot"]
        self.chains, self.draws = Ensemble.load(
            file, self.form.of_objects, self.kernel, self.source
        )


def _warn(result: SampledPosterior, min_ess: float | None) -> None:
    told = []
    if result.disagreeing:
        told.append(
            f"chains of {list(result.disagreeing)} disagree: the worst R-hat is "
            f"{result.worst_r_hat:.3f}"
        )
    if min_ess is not None and result.worst_ess < min_ess:
        told.append(
            f"there are {result.worst_ess:.0f} effective draws of the worst coordinate, and "
            f"min_ess = {min_ess:g} were asked for"
        )
    if told:
        warnings.warn(
            f"{'; '.join(told)}. Let chains go on (num_samples), or take more of them; modes that "
            "are far apart keep the chains that started in them",
            AccuracyWarning,
            stacklevel=4,
        )
