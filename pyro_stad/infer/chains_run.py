"""The chains of one posterior: where they start, in which form they move, and how they are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._progress import progress_bar
from pyro_stad._random import generator
from pyro_stad.infer.chains_pilot import best, piloted
from pyro_stad.infer.sampled import SampledPosterior, summed_up, values_of
from pyro_stad.infer.starts import STUCK, Doubts, some
from pyro_stad.model.forms import AbstractForm, NoiseForm, ParameterForm, has_parameters
from pyro_stad.model.joint import JointDensity, checked_joint
from pyro_stad.model.noise import LatentProblem, NoMapError, failures
from pyro_stad.model.predictive import prior_draws
from pyro_stad.model.vectorised import VectorisedModel
from pyro_stad.samplers import (
    AbstractKernel,
    Ensemble,
    Hamiltonian,
    temper,
    temper_draws,
)

__all__ = ["ChainsRun", "ModelForms", "check_chains", "read_forms"]

_FEWEST_PARTICLES = 100
_EVERY = 50  # draws between two states in a file
_KEPT = ("x", "log_p", "energy", "diverging")


def check_chains(num_chains: Any, num_samples: Any, kernel: Any) -> None:
    """Refuse options of chains that can't be used."""
    check_count(num_chains, "num_chains", least=8)
    if num_chains % 2:
        raise ValueError(f"`num_chains` must be even, for chains learn in halves; got {num_chains}")
    check_count(num_samples, "num_samples", least=10)
    if kernel is not None and not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`kernel` must be a kernel, such as Hamiltonian(); got {kernel!r:.80}")


class ModelForms(NamedTuple):
    """A model, as a likelihood of noise if its priors are maps of that, and its forms by name."""

    model: VectorisedModel
    problem: LatentProblem | None
    forms: dict[str, AbstractForm]


def read_forms(model: Callable[..., Any], args: Any, kwargs: Any) -> ModelForms:
    """Read a model, and say in which forms it can be sampled.

    Raises:
        TypeError, ValueError: for a model that has none.
    """
    try:
        problem = LatentProblem(model, *args, **kwargs)
    except NoMapError as error:
        read = VectorisedModel(model, args, kwargs)
        if not has_parameters(read):
            raise ValueError(
                f"{error}. Nor can the model be sampled in parameters: another prior has an angle, "
                "or is a generator of one step, and no density on the line"
            ) from error
        form = ParameterForm(checked_joint(read))
        return ModelForms(read, None, {form.name: form})
    forms: list[AbstractForm] = [NoiseForm(problem)]
    if has_parameters(problem.model):
        forms.append(ParameterForm(JointDensity(problem.model)))
    return ModelForms(problem.model, problem, {form.name: form for form in forms})


class ChainsRun:
    """Chains of one model, from the prior to the last draw."""

    def __init__(
        self, read: ModelForms, num_chains: int, form: str, kernel: AbstractKernel | None, seed: int
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
        # Of every move where chains were, each (C, K), and what is known of them, each (C,).
        self.drawn: dict[str, list[Tensor]] = {name: [] for name in _KEPT}
        self._values: list[dict[str, Tensor]] = []
        self._carried = 0
        self.identity = {
            "seed": seed, "wanted": form, "kernel": repr(self.kernel), "chains": num_chains,
            "data": read.model.data, "dtype": str(like.dtype),
            "sites": {name: list(shape) for name, shape in read.model.sites.items()},
        }  # fmt: skip

    def start(self, file: Path | None, *, progress: bool) -> None:
        """Take chains to the posterior, or take up those of a file."""
        self.file = file
        if file is not None and not file.parent.is_dir():
            raise FileNotFoundError(f"`checkpoint` is in a folder that there is not: {file.parent}")
        if file is not None and file.exists():
            self._take_up(file)
            return
        starts = self._starts(progress=progress)
        self.form = self._chosen(starts)
        self.chains = self._ensemble(self.form, starts[self.form.name])
        self.chains.warm_up()
        self._keep()

    def _starts(self, *, progress: bool) -> dict[str, Tensor]:
        """Return where chains start in each form, ``(1, 2, C / 2, K)``."""
        half = self.num_chains // 2
        particles = max(_FEWEST_PARTICLES, 2 * half)
        if self.read.problem is None:
            return self._from_prior(particles, half, progress=progress)
        runs = temper(self.read.problem, particles, 2, self.source, progress=progress)
        self.doubts = Doubts.of(runs)
        noise = some(runs.u, half, self.source)[0]
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
        self.doubts = Doubts.of(runs)
        return {form.name: some(runs.u, half, self.source)}

    def _halves(self, form: AbstractForm, values: dict[str, Tensor]) -> Tensor:
        rows = cast(ParameterForm, form).from_values(values)
        bad = ~torch.isfinite(rows).all(1)
        if bad.all():
            raise ValueError("all draws to start from are on the bounds of their priors")
        # A draw may be rounded to a bound, which is at infinity here: another takes its place.
        good = (~bad).nonzero()[:, 0]
        lot = torch.randint(len(good), (len(rows),), generator=self.source, device=rows.device)
        rows = torch.where(bad[:, None], rows[good[lot]], rows)
        return rows.reshape(1, 2, -1, form.size)

    def draw(self, count: int, *, progress: bool) -> None:
        """Let chains go on until there are ``count`` draws of each."""
        with progress_bar("draws", count, shown=progress, done=len(self.drawn["x"])) as bar:
            while (done := len(self.drawn["x"])) < count:
                self.chains.step()
                for name, kept in self.drawn.items():
                    kept.append(getattr(self.chains, name)[0])
                bar.update()
                if (done + 1) % _EVERY == 0 or done + 1 == count:
                    self._keep()

    def result(self, count: int, seconds: float) -> SampledPosterior:
        """Return what the first ``count`` draws of each chain are; ``count`` never falls."""
        # Blocks that were asked for before are not carried through a flow again.
        if self._carried < count:
            more = torch.stack(self.drawn["x"][self._carried : count], 1)
            self._values.append(values_of(self.form, more))
            self._carried = count
        values = {
            name: torch.cat([part[name] for part in self._values], 1) for name in self._values[0]
        }
        lp, energy, diverging = (torch.stack(self.drawn[name][:count], 1) for name in _KEPT[1:])
        known = {
            "lp": lp, "energy": energy, "diverging": diverging, "pilot": self.pilot,
            "kernel": repr(self.kernel), "acceptance": self.chains.acceptance.item(),
            "jumped": self.chains.jumped.item(),
            "evaluations": int(self.chains.counts[4].item()), "seconds": seconds,
            "warnings": self._warnings(),
        }  # fmt: skip
        return summed_up(self.form.name, values, known)

    def _warnings(self) -> tuple[str, ...]:
        told: tuple[str, ...] = (STUCK,) if self.doubts.left(self.chains.jumped).any() else ()
        if self.read.problem is not None:
            told += self.read.problem.warnings()
        densities = [
            form.density for form in self.forms.values() if isinstance(form, ParameterForm)
        ]
        return told + failures(
            *(sum(getattr(each, name) for each in densities) for name in ("failed", "calls"))
        )

    def _chosen(self, starts: dict[str, Tensor]) -> AbstractForm:
        """Return the form that was asked for, or that moves farther for a network call."""
        if self.wanted != "auto":
            return self.forms[self.wanted]
        if len(self.forms) == 1:
            return next(iter(self.forms.values()))
        self.pilot = {
            name: piloted(form.of_objects, starts[name], form.price, self.kernel, self.source)
            for name, form in self.forms.items()
        }
        return self.forms[best(self.pilot)]

    def _ensemble(self, form: AbstractForm, start: Tensor) -> Ensemble:
        return Ensemble(form.of_objects, start, self.kernel, self.source)

    def _keep(self) -> None:
        if self.file is not None:
            doubts = {name: part.item() for name, part in self.doubts._asdict().items()}
            known = {"form": self.form.name, "pilot": self.pilot, "doubts": doubts}
            self.chains.save(self.file, self.drawn, self.identity, known)

    def _take_up(self, file: Path) -> None:
        known = Ensemble.known(file, self.identity)
        self.form, self.pilot = self.forms[known["form"]], known["pilot"]
        self.doubts = Doubts(**{k: torch.tensor([v]) for k, v in known["doubts"].items()})
        self.chains, drawn = Ensemble.load(file, self.form.of_objects, self.kernel, self.source)
        self.drawn |= drawn
