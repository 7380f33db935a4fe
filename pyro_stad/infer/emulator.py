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

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count, check_seed
from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad._weights import effective_size
from pyro_stad.density import ConditionalFlow, ConditionalGenerator
from pyro_stad.errors import AccuracyWarning
from pyro_stad.evidence.correction import weighed
from pyro_stad.fitting import FitSettings, distil_one_step, fit
from pyro_stad.infer.correct import CorrectedPosterior
from pyro_stad.infer.ranks import Ranks
from pyro_stad.model.joint import JointDensity, angles
from pyro_stad.model.noise import LatentProblem
from pyro_stad.model.predictive import observed_row, predictive

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
        args: what it is called with; the observations among them are for their shapes alone.
        simulations: pairs of latent variables and data to learn from.
        budget: of the conditional flow, as of ``fit``.
        method, steps: of the generator, as of ``distil_one_step``.
        seed: of everything random.
        progress: whether to show bars.
        resume: folder for the state of an unfinished run; one that was killed goes on from it.

    Raises:
        TypeError, ValueError: for a model that ``log_evidence`` does not take, with an angle among
            its latent variables, or with a factor; or for settings that can't be used.
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
    density = _density(model, args)
    values, rows = predictive(density.model, simulations, seed, progress=progress)
    with torch.no_grad():
        latent = density.unconstrain(values)
    folder = None if resume is None else Path(resume)
    flow: ConditionalFlow = fit(
        latent, context=rows, budget=budget, seed=seed, progress=progress,
        resume=folder and folder / "posterior", dtype=latent.dtype,
    )  # fmt: skip
    made = distil_one_step(
        flow, method=method, steps=steps, contexts=rows, seed=seed, progress=progress,
        resume=folder and folder / "one step",
    )  # fmt: skip
    return PosteriorEmulator(model, *args, generator=made)


def _density(model: Callable[..., Any], args: tuple[Any, ...]) -> JointDensity:
    """Return the joint density of a model, and refuse one that no emulator can be made of."""
    problem = LatentProblem(model, *args)
    if periodic := angles(problem.model.latent):
        raise ValueError(
            f"{periodic} are angles, which have no unconstrained coordinates; an emulator can't "
            "take them yet"
        )
    if problem.generators:
        raise ValueError(
            f"{list(problem.generators)} are drawn by generators of one step, which have no "
            "density to weigh by: put generator.prior into the model"
        )
    return JointDensity(problem.model)


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
        self.density, self.generator = _density(model, args), generator
        row = observed_row(self.density.model, args)
        if row.shape[1] != len(generator.context_names):
            raise ValueError(
                f"`generator` is given {len(generator.context_names)} numbers, and the model "
                f"observes {row.shape[1]}: it is of another model"
            )

    def rows(self, *args: Any) -> Tensor:
        """Return what the model observes with ``args``, side by side: a context, ``(1, C)``.

        Raises:
            ValueError: if it observes nothing, or of other shapes than in training.
        """
        return observed_row(self.density.model, args)

    def sample(self, *args: Any, num_samples: int = 1000, seed: int = 0) -> dict[str, Tensor]:
        """Draw from the posterior of a datum, in one network call.

        Arguments:
            args: what the model is called with, the datum among it.
            num_samples: draws.
            seed: of the draws.

        Returns:
            Draws by site, each ``(num_samples, ...)``.
        """
        check_count(num_samples, "num_samples")
        z = self._drawn(self.generator(self.rows(*args)), (num_samples,), seed)[:, 0]
        with torch.no_grad():
            return self.density.values(z, args)

    def importance(self, *args: Any, draws: int = 1000, seed: int = 0) -> CorrectedPosterior:
        """Return draws of the posterior of a datum, weighed to the model's own law.

        By the conditional flow, that the generator was distilled from and that has a density: some
        calls more than ``sample``. ``log_z`` is the evidence of the datum.

        Arguments:
            args: what the model is called with, the datum among it.
            draws: draws.
            seed: of the draws.

        Warns:
            AccuracyWarning: if the weights are so uneven that their means can't be believed.
        """
        check_count(draws, "draws", least=100)
        law = self.generator.flow(self.rows(*args)[0])
        z = self._drawn(law, (draws,), seed)
        with torch.no_grad():
            log_weights = self.density.log_joint(z, args).double() - law.log_prob(z).double()
            values = self.density.values(z, args)
        found = weighed(log_weights.cpu(), torch.arange(draws), 1)
        result = CorrectedPosterior(
            {name: value[None] for name, value in values.items()},
            found.weights.log()[None], found.khat, effective_size(found.weights).item(),
            found.value, found.error, tuple(values),
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
        self, simulations: int = 500, draws: int = 99, *, seed: int = 1, progress: bool = True
    ) -> Ranks:
        """Check the emulator by data that the model draws: ranks of truths among their draws.

        Arguments:
            simulations: data, which no training has seen if the seed is another one.
            draws: for each.
            seed: of everything random.
            progress: whether to show a bar.

        Returns:
            Ranks of all unconstrained coordinates: uniform, if each posterior is right.
        """
        check_count(simulations, "simulations", least=50)
        check_count(draws, "draws", least=9)
        model = self.density.model
        values, rows = predictive(model, simulations, check_seed(seed), progress=progress)
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
