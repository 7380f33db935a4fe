r"""Somebody else's network as a field: any of the four faces, on a named path.

.. code-block:: python

    field = from_score(lambda t, x: net(x, t), path="vp", features=26)

The callable sees ``t`` with shape ``(B,)`` and ``x`` with shape ``(B, *event_shape)``, and returns
the shape of ``x``.
Its parameters are frozen by no one: call ``requires_grad_(False)`` on it when it is a module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, cast

from torch import Tensor, nn

from pyro_stad._checks import check_count
from pyro_stad._events import beside
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.paths import AbstractPath, convert
from pyro_stad.registry import build

__all__ = ["ForeignField", "from_denoiser", "from_noise", "from_score", "from_velocity"]

Face = Callable[[Tensor, Tensor], Tensor]


class ForeignField(AbstractAngularField):
    """A field given by one face of a foreign network; see the ``from_*`` functions."""

    def __init__(
        self, function: Face, face: str, path: AbstractPath, event_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self._set_path(path, event_shape)
        self.face = face
        # A module is registered as a child, so that `.to()` and `.parameters()` reach it.
        self.function: Face | nn.Module = function

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        # Own time is the angle; the foreign network lives in path time and path coordinates.
        time = self.path.time_at_angle(t)
        point = beside(self.path.polar(time).scale, x) * x
        value = self.function(time.expand(x.shape[:1]), point)
        if value.shape != x.shape:
            raise ValueError(
                f"`function` must return the shape of x, {tuple(x.shape)}; got "
                f"{tuple(value.shape)}. It is called as function(t, x) with t of shape (B,)"
            )
        return convert.TO_ANGULAR[self.face](self.path, time, point, value)


def _wrap(
    function: Face, face: str, path: str | AbstractPath, features: int | Sequence[int]
) -> ForeignField:
    if not callable(function):
        raise TypeError(f"`function` must be a callable (t, x) -> {face}; got {function!r}")
    known = build(path, "path") if isinstance(path, str) else path
    sizes = (features,) if isinstance(features, Integral) else tuple(cast(Any, features))
    event_shape = tuple(map(int, sizes))
    for size in event_shape or (0,):
        check_count(size, "features")
    return ForeignField(function, face, known, event_shape)


def from_velocity(
    function: Face, *, path: str | AbstractPath, features: int | Sequence[int]
) -> ForeignField:
    """Wrap a network that predicts the probability-flow velocity :math:`dx/dt`.

    Arguments:
        function: callable ``(t, x)`` with shapes ``(B,)`` and ``(B, *event_shape)``, returning the
            shape of x; time runs from data to noise.
        path: name or object of the Gaussian path that it was trained on.
        features: the dimension D, or the shape of an event such as ``(3, 32, 32)``.
    """
    return _wrap(function, "velocity", path, features)


def from_score(
    function: Face, *, path: str | AbstractPath, features: int | Sequence[int]
) -> ForeignField:
    r"""Wrap a network that predicts the score :math:`\nabla\log p_t`; see ``from_velocity``."""
    return _wrap(function, "score", path, features)


def from_noise(
    function: Face, *, path: str | AbstractPath, features: int | Sequence[int]
) -> ForeignField:
    r"""Wrap a network that predicts the noise :math:`\epsilon`; see ``from_velocity``."""
    return _wrap(function, "noise", path, features)


def from_denoiser(
    function: Face, *, path: str | AbstractPath, features: int | Sequence[int]
) -> ForeignField:
    """Wrap a network that predicts the clean data; see ``from_velocity``."""
    return _wrap(function, "denoised", path, features)
