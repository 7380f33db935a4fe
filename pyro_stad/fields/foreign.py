r"""Somebody else's network as a field: any of the four faces, on a named path.

.. code-block:: python

    field = from_score(lambda t, x: net(x, t), path="vp", features=26)

The callable sees ``t`` with shape ``(B,)`` and ``x`` with shape ``(B, *event_shape)``, and, if it
says that it takes one, a context with shape ``(B, *context_shape)``; it returns the shape of ``x``.
Its parameters are frozen by no one: call ``requires_grad_(False)`` on it when it is a module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_stad._checks import check_count
from pyro_stad._events import beside
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.paths import AbstractPath, convert
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["ForeignField", "from_denoiser", "from_noise", "from_score", "from_velocity"]

Face = Callable[..., Tensor]


@storable("field", "foreign")
class ForeignField(AbstractAngularField):
    """A field given by one face of a foreign network; see the ``from_*`` functions.

    Files say what it is, and hold nothing of the network.
    """

    context: Tensor | None = None

    def __init__(
        self,
        function: Face,
        face: str,
        path: AbstractPath,
        event_shape: Sequence[int],
        context_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._set_path(path, event_shape)
        self.face, self.context_shape = face, torch.Size(context_shape)
        # A module is registered as a child, so that `.to()` and `.parameters()` reach it.
        self.function: Face | nn.Module = function

    def given(self, context: Tensor) -> ForeignField:
        if not self.context_shape:
            return super().given(context)  # type: ignore[return-value]
        field = copy.copy(self)
        field.context = context
        return field

    def settings(self) -> dict[str, Any]:
        return {
            "face": self.face,
            "path": describe(self.path, "path"),
            "event_shape": list(self.event_shape),
            "context_shape": list(self.context_shape),
        }

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> ForeignField:
        field = source.given.get("foreign")
        if type(field) is not cls or field.settings() != settings:
            kind = field.settings() if type(field) is cls else type(field).__name__
            raise ValueError(f"`field` must be the one that the file says: {settings}; got {kind}")
        # What is loaded is moved and cast; the user's own network stays as it is.
        return copy.deepcopy(field)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        # Own time is the angle; the foreign network lives in path time and path coordinates.
        time = self.path.time_at_angle(t)
        point = beside(self.path.polar(time).scale, x) * x
        arguments = [time.expand(x.shape[:1]), point]
        if self.context_shape:
            if self.context is None:
                raise ValueError("this field depends on a context: use field.given(context)")
            arguments.append(self.context.expand(len(x), *self.context_shape))
        value = self.function(*arguments)
        if value.shape != x.shape:
            called = "t, x, context" if self.context_shape else "t, x"
            raise ValueError(
                f"`function` must return the shape of x, {tuple(x.shape)}; got "
                f"{tuple(value.shape)}. It is called as function({called}) with t of shape (B,)"
            )
        return convert.TO_ANGULAR[self.face](self.path, time, point, value)


def _wrap(
    function: Face,
    face: str,
    path: str | AbstractPath,
    features: int | Sequence[int],
    context_shape: int | Sequence[int],
) -> ForeignField:
    if not callable(function):
        raise TypeError(f"`function` must be a callable (t, x) -> {face}; got {function!r}")
    known = build(path, "path") if isinstance(path, str) else path
    event_shape = _shape(features, "features")
    if not event_shape:
        check_count(0, "features")
    return ForeignField(function, face, known, event_shape, _shape(context_shape, "context_shape"))


def _shape(sizes: int | Sequence[int], argument: str) -> tuple[int, ...]:
    """Return a shape that is given as a number, or as numbers."""
    shape = (sizes,) if isinstance(sizes, Integral) else tuple(cast(Any, sizes))
    for size in shape:
        check_count(size, argument)
    return tuple(map(int, shape))


def from_velocity(
    function: Face,
    *,
    path: str | AbstractPath,
    features: int | Sequence[int],
    context_shape: int | Sequence[int] = (),
) -> ForeignField:
    """Wrap a network that predicts the probability-flow velocity :math:`dx/dt`.

    Arguments:
        function: callable ``(t, x)`` with shapes ``(B,)`` and ``(B, *event_shape)``, returning the
            shape of x; time runs from data to noise.
        path: name or object of the Gaussian path that it was trained on.
        features: the dimension D, or the shape of an event such as ``(3, 32, 32)``.
        context_shape: the dimension C, or the shape, of a context that the network takes besides:
            it is then called as ``function(t, x, context)``, with ``(B, *context_shape)``.
    """
    return _wrap(function, "velocity", path, features, context_shape)


def from_score(
    function: Face,
    *,
    path: str | AbstractPath,
    features: int | Sequence[int],
    context_shape: int | Sequence[int] = (),
) -> ForeignField:
    r"""Wrap a network that predicts the score :math:`\nabla\log p_t`; see ``from_velocity``."""
    return _wrap(function, "score", path, features, context_shape)


def from_noise(
    function: Face,
    *,
    path: str | AbstractPath,
    features: int | Sequence[int],
    context_shape: int | Sequence[int] = (),
) -> ForeignField:
    r"""Wrap a network that predicts the noise :math:`\epsilon`; see ``from_velocity``."""
    return _wrap(function, "noise", path, features, context_shape)


def from_denoiser(
    function: Face,
    *,
    path: str | AbstractPath,
    features: int | Sequence[int],
    context_shape: int | Sequence[int] = (),
) -> ForeignField:
    """Wrap a network that predicts the clean data; see ``from_velocity``."""
    return _wrap(function, "denoised", path, features, context_shape)
