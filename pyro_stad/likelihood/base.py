r"""What every likelihood shares: the flow that its density is one of, and frozen settings.

A likelihood is a density, and not a way to draw from it: that is a transport
(:mod:`pyro_stad.transport.base`). It is never changed, but replaced by one that differs in some
part.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from pyro_stad._chunks import CHUNK_SIZE, check_chunk_size, rows_of
from pyro_stad._events import event_sum
from pyro_stad.data.standardise import AbstractWhitening
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields.base import AbstractField
from pyro_stad.ode import AbstractSolver
from pyro_stad.registry import Source
from pyro_stad.transport import Flow

__all__ = ["AbstractLikelihood"]

_PARTS = ("field", "divergence", "solver", "chunk_size", "log_mass")


@functools.cache
def _parts_of(kind: type) -> tuple[str, ...]:
    """Return the arguments of a constructor, each of which is an attribute of what it makes."""
    return tuple(inspect.signature(kind).parameters)


class AbstractLikelihood(nn.Module, ABC):
    r"""A way to the log-density of a field's flow.

    Arguments:
        field: the velocity field.
        divergence: how :math:`\nabla\cdot v` is computed.
        solver: how the flow is solved that this is the density of.
        chunk_size: network rows worked on at a time.
        log_mass: logarithm of the mass that is divided out of the density; see
            :mod:`pyro_stad.calibrate.choose`.
    """

    # Whether log p is the integral of the divergence, so that the mass of every way is off alike.
    integrates: ClassVar[bool] = True

    field: AbstractField
    divergence: AbstractDivergence
    context: Tensor | None = None

    def __init__(
        self,
        field: AbstractField,
        divergence: AbstractDivergence,
        solver: AbstractSolver,
        chunk_size: int = CHUNK_SIZE,
        log_mass: float = 0.0,
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        if not math.isfinite(log_mass):
            raise ValueError(f"`log_mass` must be finite; got {log_mass}")
        self.field, self.divergence, self.solver = field, divergence, solver
        self.chunk_size, self.log_mass = chunk_size, log_mass

    def __setattr__(self, name: str, value: Any) -> None:
        fixed = name in _PARTS or name in _parts_of(type(self))
        if fixed and name in self.__dict__.keys() | self._modules.keys():
            raise AttributeError(
                f"a likelihood is not changed: `{name}` can't be assigned. Make another one by "
                f"likelihood.replace({name}=...)"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.divergence!r}, {self.solver!r})"

    def replace(self, **changes: Any) -> Self:
        """Return a likelihood of the same kind and parts, but for what is named.

        Of a flow that is solved, ``replace(divergence=Exact())`` is the exact twin: chunk size,
        solver and mass are kept. Of any other way, it is ``FlowODE.of(likelihood,
        divergence=Exact())``, whose mass is one.

        Every argument of a constructor is an attribute of the same name.

        Raises:
            TypeError: if there is no such part.
        """
        parts = {name: getattr(self, name) for name in _parts_of(type(self))}
        unknown = sorted(changes.keys() - parts.keys())
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {unknown}; it has {list(parts)}")
        new = type(self)(**{**parts, **changes})
        return new if self.context is None else new.given(self.context)

    def given(self, context: Tensor) -> Self:
        """Return the density of points given a context, of the same networks.

        Arguments:
            context: a row for each point, shape ``(B, *context_shape)``, or one for all.

        Raises:
            TypeError: if the field takes no context.
        """
        if not self.field.context_shape:
            raise TypeError(f"a {type(self.field).__name__} takes no context")
        new = copy.copy(self)
        new.context = context
        return new

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``; NaN where it failed."""

    def push_and_log_prob(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Carry noise ``z``, ``(B, *event_shape)``, to data, with their log-densities ``(B,)``.

        The draws are those of ``transport()``; a density that is solved for comes with them, in
        the same solve.
        """
        x = self.transport().push(z)
        return x, self.log_prob(x)

    def log_prob_before(self, whitening: AbstractWhitening, v: Tensor) -> Tensor:
        """Return the log-density of data that are given before their whitening, ``(B, D)``.

        It is that of the whitened points: what the whitening adds is a constant.
        """
        return self.log_prob(whitening.inv(v))

    def settings(self) -> dict[str, Any]:
        """Return what a file says of this way, besides what all ways have."""
        return {}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> Self:
        """Return the likelihood that ``settings`` has described, of the given ``_PARTS``."""
        return cls(**{part: source.given[part] for part in _PARTS}, **settings)

    def freeze(self) -> AbstractLikelihood:
        """Return the same density, as fast as it gets for networks that are trained no more."""
        return self

    def transport(self) -> Flow:
        """Return the flow that this is the density of."""
        flow = Flow(self.field, self.solver, chunk_size=self.chunk_size)
        return flow if self.context is None else flow.given(self.context)

    def _rows(self, count: int) -> Tensor | None:
        """Return the context of so many points."""
        if self.context is None:
            return None
        return rows_of(self.context, self.field.context_shape, count)

    def _field_given(self, context: Tensor | None) -> Any:
        """Return the field that has closed over the context of some rows."""
        return self.field if context is None else self.field.given(context)

    @property
    def is_exact(self) -> bool:
        """Whether this is the density of the flow itself, but for its time grid."""
        return False

    @abstractmethod
    def sequential_calls(self) -> int | None:
        """Return the network calls, one after the other, of ``log_prob``; None if they vary."""

    def _log_prob_at_end(self, z: Tensor, integral: Tensor) -> Tensor:
        """Return the log-density of data that ended in ``z`` and met ``integral`` on the way."""
        return self.constant() - 0.5 * event_sum(z.square()) + integral

    def constant(self) -> float:
        """Return the constant of the density: noise's, the data's scale, and the mass."""
        field = self.field
        normal = math.log(field.data_scale) - 0.5 * math.log(2 * math.pi)
        return field.features * normal - self.log_mass
