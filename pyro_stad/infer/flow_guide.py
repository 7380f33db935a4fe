r"""``FlowGuide``: a guide whose law is the flow of an ODE, while it is trained.

.. math:: z \sim N(0, I), \quad x = \mathrm{flow}(z), \quad u = \mu + \sigma x,

with all latent variables of the model, unbounded, in u; the velocity, :math:`\mu` and
:math:`\sigma` are trained together. Untrained, the flow moves nothing, and the guide is a diagonal
normal. :math:`\log q(u)` takes the determinant of the solver's own steps, which come with the draw,
and gradients go through all of it. The integral of the divergence would not do: trained by it for a
law of two modes, a flow of four Runge-Kutta steps had a "bound" 2.5 nats above the evidence, from
the error of the integral alone.

What comes out is a learned law like any other: ``guide.prior()`` is a ``FlowPrior``, to be saved,
sampled, or taken as the prior of the next experiment.

References:
    Chen et al. (2018), Neural Ordinary Differential Equations; Grathwohl et al. (2019), FFJORD:
    Free-form Continuous Dynamics for Scalable Reversible Generative Models.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_stad._checks import check_count, check_positive
from pyro_stad._random import forked, stream
from pyro_stad.data.layout import Layout, element_names
from pyro_stad.density import FlowPrior, OneSolve
from pyro_stad.divergence import Exact
from pyro_stad.errors import AccuracyWarning
from pyro_stad.fields import FreeFormField
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.transport import Flow

__all__ = ["FlowGuide"]

_DRAWS, _MOST_APART = 1000, 0.1


class FlowGuide(AutoContinuous):
    """A guide over all latent variables of a model together, that bends as their posterior does.

    Of modes far apart, the bound that SVI climbs is content with one, whatever the guide can do:
    held against the evidence, it is then short of the logarithm of that mode's share.

    It is used as Pyro's ``AutoNormal`` is. A step costs a solve of an ODE, there and back; for many
    data with variables of their own, see ``AmortizedGuide``.

    Arguments:
        model: the model.
        width, depth: of the velocity's network.
        steps: of Runge-Kutta's rule of order four.
        init_scale: of each unbounded variable.
        init_loc_fn: as of Pyro's guides.

    Example:
        >>> import pyro
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x.exp(), 0.3), obs=torch.tensor(1.0))
        >>> guide = FlowGuide(model, width=16, depth=2)
        >>> optim, elbo = pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO()
        >>> svi = pyro.infer.SVI(model, guide, optim, elbo)
        >>> for _ in range(3):
        ...     loss = svi.step()
        >>> guide.prior().names
        ('x',)
    """

    scale: Any  # what PyroParam has put there: a positive tensor

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        width: int = 64,
        depth: int = 3,
        steps: int = 4,
        init_scale: float = 0.1,
        init_loc_fn: Callable[..., Any] = init_to_median,
    ) -> None:
        if not callable(model):
            raise TypeError(f"`model` must be a Pyro model; got {type(model).__name__}")
        for name, value in (("width", width), ("depth", depth), ("steps", steps)):
            check_count(value, name)
        check_positive(init_scale, "init_scale")
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.width, self.depth, self.init_scale = width, depth, float(init_scale)
        self.steps = steps

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        for name, stack in self._cond_indep_stacks.items():
            for frame in stack:
                if frame.full_size and frame.size < frame.full_size:
                    raise ValueError(
                        f"latent site {name!r} is in plate {frame.name!r}, of which {frame.size} "
                        f"of {frame.full_size} members come at a time: a FlowGuide has one set of "
                        "numbers for all of them. Take AmortizedGuide, or leave `subsample_size` "
                        "out"
                    )
        loc = self._init_loc()
        self.loc = torch.nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(loc, self.init_scale), constraints.positive)
        field = FreeFormField(len(loc), self.width, self.depth).to(loc)
        self.flow = Flow(field, RK4(steps=self.steps))

    def get_posterior(self, *args: Any, **kwargs: Any) -> OneSolve:
        """Return the law of all latent variables, unbounded, ``(D,)``."""
        return OneSolve(_ScaledFlow(self.flow, self.loc, self.scale))

    def prior(self) -> FlowPrior:
        """Return what has been learned, as a prior of the unbounded latent variables.

        It is a copy, which further training does not change, of the flow on twice as fine a grid.
        Of a variable that is bounded in the model, it is the law of
        ``biject_to(support).inv(value)``.

        Raises:
            ValueError: if the guide has not run yet.

        Warns:
            AccuracyWarning: if the trained steps are too coarse for the flow that they follow.
        """
        if self.prototype_trace is None:
            raise ValueError("the guide has no flow yet: train it by SVI first")
        loc, scale = self.loc.detach().clone(), self.scale.detach().clone()
        names: list[str] = []
        for name, shape in self._unconstrained_shapes.items():
            names += element_names(name, tuple(shape))
        fine = RK4(steps=2 * self.steps)
        likelihood = FlowODE(cast(Flow, self.flow).field, Exact(), fine)
        prior = FlowPrior(likelihood, loc, torch.diag(scale), Layout.of(names))
        self._compare(prior)
        return prior

    def _compare(self, prior: FlowPrior) -> None:
        """Warn if draws of the guide have another density under the flow of finer steps."""
        with torch.no_grad(), forked(stream(0, "draws of a flow guide")):
            law = _ScaledFlow(cast(Flow, self.flow), self.loc, self.scale)
            value, log_prob, sign = law.drawn(torch.Size((_DRAWS,)))
            apart = (prior.log_prob(value) - log_prob).abs().mean().item()
        folded = (sign <= 0).double().mean().item()
        if apart > _MOST_APART or folded > 0:
            warnings.warn(
                f"the guide's {self.steps} steps are too coarse for its flow: its draws' densities "
                f"are {apart:.2g} nat off in the mean, and {folded:.1%} of them are where the "
                "steps fold. Train with more `steps`, or at a lower rate",
                AccuracyWarning,
                stacklevel=3,
            )

    def _loc_scale(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "the quantiles of a flow are in no closed form: take those of draws, such as "
            "Predictive(model, guide=guide, num_samples=1000)()"
        )


class _ScaledFlow(dist.TorchDistribution):
    """The law of loc + scale x, x along a flow, with gradients to all three.

    Arguments:
        flow: its steps.
        loc, scale: ``(D,)``.
        batch_shape: of independent copies.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, flow: Flow, loc: Tensor, scale: Tensor, batch_shape: tuple[int, ...] = ()
    ) -> None:
        self.flow, self.loc, self.scale = flow, loc, scale
        super().__init__(torch.Size(batch_shape), loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _ScaledFlow:
        return _ScaledFlow(self.flow, self.loc, self.scale, torch.Size(batch_shape))

    def drawn(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Return draws, their log-densities, and the signs of the determinants."""
        batch = sample_shape + self.batch_shape
        z = torch.randn(math.prod(batch), len(self.loc)).to(self.loc)
        x, sign, log_det = self.flow.push_and_slogdet(z)
        normal = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        log_prob = normal - log_det - self.scale.log().sum()
        value = self.loc + self.scale * x
        return value.reshape(*batch, -1), log_prob.reshape(batch), sign

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        return self.drawn(torch.Size(sample_shape))[:2]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.drawn(torch.Size(sample_shape))[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of points that are not the last draws, to the grid's error."""
        x = ((value - self.loc) / self.scale).reshape(-1, len(self.loc))
        found = FlowODE(self.flow.field, Exact(), self.flow.solver).log_prob(x)
        return (found - self.scale.log().sum()).reshape(value.shape[:-1])
