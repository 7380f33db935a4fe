r"""``FlowGuide``: a guide whose law is the flow of an ODE, while it is trained.

.. math:: z \sim N(0, I), \quad x = \mathrm{flow}(z), \quad u = \mu + \sigma x,

with all latent variables of the model, unbounded, in u; the velocity, :math:`\mu` and
:math:`\sigma` are trained together. Untrained, the flow moves nothing, and the guide is a diagonal
normal. The exact trace along the same solve gives :math:`\log q(u)`, and gradients go through all
of it. What comes out is a learned law like any other: ``guide.prior()`` is a ``FlowPrior``, to be
saved, sampled, or taken as the prior of the next experiment.

References:
    Chen et al. (2018), Neural Ordinary Differential Equations; Grathwohl et al. (2019), FFJORD:
    Free-form Continuous Dynamics for Scalable Reversible Generative Models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_stad._checks import check_count, check_positive
from pyro_stad.data.layout import Layout, element_names
from pyro_stad.density import FlowPrior, OneSolve
from pyro_stad.divergence import AbstractDivergence, Exact
from pyro_stad.fields import FreeFormField
from pyro_stad.likelihood import AbstractLikelihood, FlowODE
from pyro_stad.ode import RK4, AbstractSolver

__all__ = ["FlowGuide"]


class FlowGuide(AutoContinuous):
    """A guide over all latent variables of a model together: bent, and of several modes.

    It is used as Pyro's ``AutoNormal`` is. A step costs a solve of an ODE, there and back; for many
    data with variables of their own, see ``AmortizedGuide``.

    Arguments:
        model: the model.
        width, depth: of the velocity's network.
        solver: of the ODE.
        divergence: how the trace is computed. Exact costs D products for each call of the network;
            a ``Hutchinson`` has probes that stay the same, and so a bias that training exploits.
        init_scale: of each unbounded variable.
        init_loc_fn: as of Pyro's guides.

    Example:
        >>> import pyro
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x**2, 0.3), obs=torch.tensor(1.0))  # two modes
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
        solver: AbstractSolver | None = None,
        divergence: AbstractDivergence | None = None,
        init_scale: float = 0.1,
        init_loc_fn: Callable[..., Any] = init_to_median,
    ) -> None:
        if not callable(model):
            raise TypeError(f"`model` must be a Pyro model; got {type(model).__name__}")
        for name, value in (("width", width), ("depth", depth)):
            check_count(value, name)
        check_positive(init_scale, "init_scale")
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.width, self.depth, self.init_scale = width, depth, float(init_scale)
        self.solver = RK4(steps=4) if solver is None else solver
        self.divergence = Exact() if divergence is None else divergence

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc = self._init_loc()
        self.loc = torch.nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(loc, self.init_scale), constraints.positive)
        field = FreeFormField(len(loc), self.width, self.depth).to(loc)
        self.likelihood = FlowODE(field, self.divergence, self.solver)

    def get_posterior(self, *args: Any, **kwargs: Any) -> OneSolve:
        """Return the law of all latent variables, unbounded, ``(D,)``."""
        return OneSolve(_ScaledFlow(self.likelihood, self.loc, self.scale))

    def prior(self) -> FlowPrior:
        """Return what has been learned, as a prior of the unbounded latent variables.

        It is a copy, which further training does not change. Of a variable that is bounded in the
        model, it is the law of ``biject_to(support).inv(value)``.

        Raises:
            ValueError: if the guide has not run yet.
        """
        if self.prototype_trace is None:
            raise ValueError("the guide has no flow yet: train it by SVI first")
        loc, scale = self.loc.detach().clone(), self.scale.detach().clone()
        names: list[str] = []
        for name, shape in self._unconstrained_shapes.items():
            names += element_names(name, tuple(shape))
        return FlowPrior(self.likelihood, loc, torch.diag(scale), Layout.of(names))

    def _loc_scale(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "the quantiles of a flow are in no closed form: take those of draws, such as "
            "Predictive(model, guide=guide, num_samples=1000)()"
        )


class _ScaledFlow(dist.TorchDistribution):
    """The law of loc + scale x, x along a flow, with gradients to all three.

    Arguments:
        likelihood: of the flow.
        loc, scale: ``(D,)``.
        batch_shape: of independent copies.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        likelihood: AbstractLikelihood,
        loc: Tensor,
        scale: Tensor,
        batch_shape: tuple[int, ...] = (),
    ) -> None:
        self.likelihood, self.loc, self.scale = likelihood, loc, scale
        super().__init__(torch.Size(batch_shape), loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _ScaledFlow:
        return _ScaledFlow(self.likelihood, self.loc, self.scale, torch.Size(batch_shape))

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        batch = torch.Size(sample_shape) + self.batch_shape
        z = torch.randn(math.prod(batch), len(self.loc)).to(self.loc)
        x, log_prob = self.likelihood.push_and_log_prob(z)
        value = self.loc + self.scale * x
        log_prob = log_prob - self.scale.log().sum()
        return value.reshape(*batch, -1), log_prob.reshape(batch)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample_and_log_prob(sample_shape)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        x = ((value - self.loc) / self.scale).reshape(-1, len(self.loc))
        found = self.likelihood.log_prob(x) - self.scale.log().sum()
        return found.reshape(value.shape[:-1])
