r"""``distil_posterior``: the posterior of a model, for any datum, in one network call.

Pairs of latent variables and data that the model draws itself teach a conditional flow the law of
the former given the latter, which is the posterior; and that flow is distilled into a generator of
one step, which takes a datum for its context. Of a new datum, draws cost one call.

The score that is distilled is the prior's, tilted by the likelihood. At a noise level t,

.. math:: \nabla \log p_t(x_t \mid y) = \nabla \log p_t(x_t)
    + \nabla \log \int p(y \mid x)\, p(x \mid x_t)\, dx ,

whose last term has no closed form; what is put in its place at each level, such as the likelihood
at the mean of x given :math:`x_t`, makes a posterior that is too narrow, and nobody tells by how
much. Matching to pairs learns the sum, without any such bias, and the flow that results has a
density besides, by which draws are weighed: with q the flow's,

.. math:: \log w = \log p(y \mid \theta) + \log p(\theta) - \log q(\theta \mid y),

whose mean is the evidence of the datum, and whose Pareto shape says whether it can be believed.
Latent variables are in unconstrained coordinates, as in Pyro's own samplers.

References:
    Xie et al. (2024), EM Distillation for One-Step Diffusion Models; Papamakarios and Murray
    (2016), Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
    Estimation; Chung et al. (2023), Diffusion Posterior Sampling for General Noisy Inverse
    Problems; Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian Inference
    Algorithms with Simulation-Based Calibration.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_stad._checks import check_count, check_seed
from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad.density import ConditionalFlow, ConditionalGenerator, find_generator
from pyro_stad.errors import AccuracyWarning, OutOfDistributionWarning
from pyro_stad.evidence.correction import weighed
from pyro_stad.fitting import FitSettings, distil_one_step, fit
from pyro_stad.infer.correct import CorrectedPosterior
from pyro_stad.infer.ranks import Ranks
from pyro_stad.model.joint import JointDensity, angles, checked_joint
from pyro_stad.model.predictive import Reader, check_predictive, predictive
from pyro_stad.model.vectorised import VectorisedModel

__all__ = ["PosteriorEmulator", "distil_posterior"]


@own_context()
def distil_posterior(
    model: Callable[..., Any],
    *args: Any,
    simulations: int = 20_000,
    budget: str | FitSettings = "standard",
    method: str = "regression",
    steps: int = 3000,
    seed: int = 0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> PosteriorEmulator:
    """Distil the posterior of a model into a generator of one call, for any datum.

    Arguments:
        model: a Pyro model with continuous latent sites, learned priors among them or not, which
            draws its own data where nothing is observed.
        args: what it is called with. Of the data among them the shapes count; all else, as a
            design or the errors of a measurement, is the same for every datum, or has to be
            observed as well.
        simulations: pairs of latent variables and data to learn from.
        budget: of the conditional flow, as of ``fit``.
        method, steps: of the generator, as of ``distil_one_step``.
        seed: of everything random.
        progress: whether to show bars.
        resume: folder for the state of an unfinished run; one that was killed goes on from it.

    Raises:
        TypeError, ValueError: for a model that has no continuous latent sites or no observations,
            an angle, a factor, a mask or a scale; or for settings that can't be used.
        TrainingError: if training diverged from the start.

    Example:
        >>> import pyro, pyro.distributions as dist, pyro_stad
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> emulator = distil_posterior(
        ...     model, torch.tensor(0.0), simulations=500, budget="tiny", steps=20, progress=False
        ... )
        >>> emulator.sample(torch.tensor(0.7), num_samples=5)["x"].shape
        torch.Size([5])
    """
    check_count(simulations, "simulations", least=100)
    seed = check_seed(seed)
    density, reader = _read(model, args)
    values, rows = predictive(density.model, simulations, seed, "training", progress=progress)
    with torch.no_grad():
        latent = density.unconstrain(values)
    folder = None if resume is None else Path(resume)
    flow: ConditionalFlow = fit(
        latent, names=_names(density.model), context=rows, context_names=reader.names,
        budget=budget, seed=seed, progress=progress,
        resume=folder and folder / "posterior", dtype=latent.dtype,
    )  # fmt: skip
    made = distil_one_step(
        flow, method=method, steps=steps, contexts=rows, seed=seed, progress=progress,
        resume=folder and folder / "one step",
    )  # fmt: skip
    return PosteriorEmulator(model, *args, generator=made)


def _read(model: Callable[..., Any], args: tuple[Any, ...]) -> tuple[JointDensity, Reader]:
    """Return the joint density of a model and what reads its data; refuse a model that has none."""
    read = VectorisedModel(model, args, {})
    if periodic := angles(read.latent):
        raise ValueError(
            f"{periodic} are angles, which have no unconstrained coordinates; an emulator can't "
            "take them yet"
        )
    if one_step := [site["name"] for site in read.latent if find_generator(site["fn"])]:
        raise ValueError(
            f"{one_step} are drawn by generators of one step, which have no density to weigh by: "
            "put generator.prior into the model, or the model into FlowReparam()"
        )
    check_predictive(read)
    return checked_joint(read, by_flow=True), Reader(read)


def _names(model: VectorisedModel) -> list[str]:
    """Return names of the unconstrained numbers of the latent sites."""
    found = []
    for site in model.latent:
        shape = biject_to(site["fn"].support).inverse_shape(site["value"].shape)
        name, count = site["name"], math.prod(shape)
        found += [name] if not shape else [f"{name}[{index}]" for index in range(count)]
    return found


def _warn_if_far(prior: Any) -> None:
    """Warn of a datum that is farther from those of the training than they are from each other."""
    share = prior.context_level().min().item()
    if share < prior.alarm_level:
        warnings.warn(
            f"the datum is farther out than all but {share:.2%} of the simulations that the "
            "emulator has learned from: it extrapolates. Weigh its draws by importance, or use "
            "sample_posterior",
            OutOfDistributionWarning,
            stacklevel=3,
        )


class PosteriorEmulator:
    """The posterior of a model for any datum, by a generator of one step.

    ``distil_posterior`` makes it. The networks are kept by ``emulator.generator.save(path)``, and
    an emulator is made again from ``PosteriorEmulator(model, *args, generator=load(path))``.

    Arguments:
        model: the model.
        args: what it is called with, data of the right shapes among them.
        generator: the generator of its latent variables, unconstrained and side by side, given
            what it observes, side by side.
    """

    def __init__(
        self, model: Callable[..., Any], *args: Any, generator: ConditionalGenerator
    ) -> None:
        if not isinstance(generator, ConditionalGenerator):
            raise TypeError(f"`generator` must be a ConditionalGenerator; got {generator!r:.80}")
        (self.density, self.reader), self.generator = _read(model, args), generator
        for part, ours, theirs in (
            ("draws", _names(self.density.model), generator.names),
            ("is given", self.reader.names, generator.context_names),
        ):
            if list(theirs) != ours:
                raise ValueError(
                    f"`generator` {part} {list(theirs)}, expected {ours}: it is of another model"
                )

    def rows(self, *args: Any) -> Tensor:
        """Return what the model observes with ``args``, side by side: a context, ``(1, C)``.

        Raises:
            ValueError: if it observes nothing, or of other shapes than in training; or if
                arguments that are no data are others than in training.
        """
        return self.reader.row(args)

    def sample(self, *args: Any, num_samples: int = 1000, seed: int = 0) -> dict[str, Tensor]:
        """Draw from the posterior of a datum, in one network call.

        Arguments:
            args: what the model is called with, the datum among it.
            num_samples: draws.
            seed: of the draws.

        Returns:
            Draws by site, each ``(num_samples, ...)``.

        Warns:
            OutOfDistributionWarning: if hardly any of the simulations was as far out as the datum.
        """
        check_count(num_samples, "num_samples")
        law = self.generator(self.rows(*args))
        _warn_if_far(law.prior)
        z = self._drawn(law, (num_samples,), seed)[:, 0]
        with torch.no_grad():
            return self.density.values(z, args)

    def importance(self, *args: Any, draws: int = 1000, seed: int = 0) -> CorrectedPosterior:
        """Return draws of the posterior of a datum, weighed to the model's own law.

        By the conditional flow, that the generator was distilled from and that has a density: some
        calls more than ``sample``. ``log_z`` is the evidence of the datum. A learned prior goes in
        by the density that it has; with ``prior.exact()`` in the model, by exact traces.

        Arguments:
            args: what the model is called with, the datum among it.
            draws: draws.
            seed: of the draws.

        Raises:
            ValueError: if no draw is possible given the datum.

        Warns:
            AccuracyWarning: if the weights are so uneven that their means can't be believed.
        """
        check_count(draws, "draws", least=100)
        law = self.generator.flow(self.rows(*args)[0])
        z = self._drawn(law, (draws,), seed)
        with torch.no_grad():
            log_weights = self.density.log_joint(z, args).double() - law.log_prob(z).double()
            values = self.density.values(z, args)
        if not torch.isfinite(log_weights).any():
            raise ValueError(
                f"none of {draws} draws is possible given the datum; is it of this model?"
            )
        found = weighed(log_weights.cpu(), torch.arange(draws), 1)
        result = CorrectedPosterior(
            {name: value[None] for name, value in values.items()},
            found.weights.log()[None], found.khat, found.effective, found.value, found.error,
        )  # fmt: skip
        if not result.is_reliable:
            warnings.warn(
                f"the emulator's weights have a Pareto shape of {result.khat:.2f} and leave "
                f"{result.ess:.0f} of {draws} draws: it has not learned the posterior of this "
                "datum. Sample it by NUTS, or train with more simulations",
                AccuracyWarning,
                stacklevel=2,
            )
        return result

    def ranks(
        self, simulations: int = 500, draws: int = 99, *, seed: int = 0, progress: bool = True
    ) -> Ranks:
        """Check the emulator by data that the model draws: ranks of truths among their draws.

        Arguments:
            simulations: data, which no training has seen.
            draws: for each.
            seed: of everything random.
            progress: whether to show a bar.

        Returns:
            Ranks of all unconstrained coordinates: uniform, if each posterior is right.
        """
        check_count(simulations, "simulations", least=50)
        check_count(draws, "draws", least=9)
        model = self.density.model
        values, rows = predictive(model, simulations, check_seed(seed), "ranks", progress=progress)
        with torch.no_grad():
            truth = self.density.unconstrain(values)
        z = self._drawn(self.generator(rows), (draws,), seed)
        return Ranks((z < truth).sum(0), draws, self.generator.names)

    def summary(self) -> str:
        """Return what it is, and how it was distilled, as text."""
        return f"{self!r}\n{self.generator.summary()}"

    def __repr__(self) -> str:
        return f"PosteriorEmulator({', '.join(self.density.model.sites)}; {self.generator!r})"

    def _drawn(self, law: Any, shape: tuple[int, ...], seed: int) -> Tensor:
        source = generator(check_seed(seed), "emulated posterior", self.density.model.like.device)
        return law.sample(shape, generator=source)
