r"""Margins: each coordinate bent to a nearly normal one, before whitening.

A flow starts from whitened coordinates, and whitening knows means and covariances only: a heavy
tail makes the standard deviation so large that the bulk becomes a spike. So a coordinate u whose
law is far from normal goes through an increasing map first,

.. math::
    v = B(s), \qquad s = \mathrm{asinh}\frac{u - c}{b}, \qquad
    \log\frac{dv}{du} = \log B'(s) - \log b - \log\sqrt{1 + (u - c)^2 / b^2},

with a cubic spline B in the uniform B-splines of step h. Its coefficients increase, and with them B
(the derivative is a combination of quadratic B-splines, none of them negative, with the increments
of the coefficients over h). B has two continuous derivatives. The last three increments on either
side are equal, so that the outermost pieces are straight lines, and go on for ever. With
s growing like the logarithm of u, a few hundred pieces take in tails of any weight.

The spline is kept piece by piece as :math:`a_0 + a_1 t + a_2 t^2 + a_3 t^3`,
:math:`t \in [0, 1]`, so that a point costs one look into a table. The way back finds the piece
among the values at the knots, and t by Newton's method, kept inside its bracket by bisection. Two
more steps, with a graph, give a root whose first and second derivatives are right: each step makes
one order right.

References:
    Ramsay (1988), Monotone Regression Splines in Action, Statistical Science 3(4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_stad._checks import is_transformed
from pyro_stad._context import full_precision

__all__ = ["Margins", "Splines"]

_LEAST, _MOST = 8, 4096  # coefficients of a spline
_NEWTON = 12


@dataclass(frozen=True)
class Splines:
    """What the maps of M coordinates are made of.

    Attributes:
        loc, scale: c and b, each with shape ``(M,)``.
        start, step: the first knot and the distance of knots in s, each with shape ``(M,)``.
        coefficients: those of B, increasing, with shape ``(M, K)``; the first is one step before
            the first knot.
    """

    loc: Tensor
    scale: Tensor
    start: Tensor
    step: Tensor
    coefficients: Tensor

    def __post_init__(self) -> None:
        _check(self)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return dict(vars(self))

    def to(self, target: torch.device | str | torch.dtype | Tensor) -> Splines:
        """Return the maps on another device or in another dtype."""
        return Splines(**{name: part.to(target) for name, part in self.tensors().items()})


class Margins(Transform):
    """From nearly normal coordinates v to unbounded ones u, each by itself.

    Arguments:
        columns: the coordinates that are mapped, increasing; others pass.
        splines: their maps.
        tails: what the left and the right tail of each are, in words.

    Raises:
        ValueError: if the splines don't increase, or don't fit the columns.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self, columns: tuple[int, ...], splines: Splines, tails: tuple[tuple[str, str], ...]
    ) -> None:
        super().__init__()
        count = len(splines.loc)
        pairs = len(tails) == count and all(len(pair) == 2 for pair in tails)
        if len(columns) != count or list(columns) != sorted(set(columns)) or not pairs:
            raise ValueError(
                f"`columns` must be {count} different coordinates, increasing, with two tails "
                f"each; got {columns} and {len(tails)} pairs"
            )
        self.columns, self.splines, self.tails = columns, splines, tails
        like = splines.loc
        self._index = torch.tensor(columns, device=like.device)
        pieces = _pieces(splines.coefficients.double())
        self._knots = pieces[..., 0].flatten().to(like)
        self._count = pieces.shape[1]
        self._first = torch.arange(count, device=like.device) * self._count
        # With the derivative's, 3 a_3 and 2 a_2: one look gives all.
        slopes = torch.stack([3 * pieces[..., 3], 2 * pieces[..., 2]], -1)
        self._table = torch.cat([pieces, slopes], -1).flatten(0, 1).to(like)
        self._one = torch.ones_like(like)
        self._inverse_scale, self._inverse_step = 1 / splines.scale, 1 / splines.step
        self._origin = -splines.start / splines.step
        self._spread = splines.scale * splines.step

    def with_cache(self, cache_size: int = 1) -> Margins:
        """Return self: ``to_normal`` gives value and slope at once, which a cache would not."""
        return self

    def to(self, target: torch.device | str | torch.dtype | Tensor) -> Margins:
        """Return the same maps on another device or in another dtype."""
        return Margins(self.columns, self.splines.to(target), self.tails)

    @full_precision
    def to_normal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return v and the sum of ``log dv/du`` over coordinates, shape ``(...)``."""
        # For one point, what this costs is the number of operations: by hand there are half as
        # many, forward and back. A transform is left to autograd, and so is a trace.
        if is_transformed(u) or not (u.requires_grad and torch.is_grad_enabled()):
            return self._evaluate(u)[:2]
        return _ToNormal.apply(u, self)

    def _evaluate(self, u: Tensor) -> tuple[Tensor, Tensor, _Point]:
        mine = self._mine(u)
        z = (mine - self.splines.loc) * self._inverse_scale
        place = torch.addcmul(self._origin, torch.asinh(z), self._inverse_step)
        piece = self._piece(place)
        t = place - piece
        a0, a1, a2, a3, b3, b2 = self._look_up(piece)
        slope = torch.addcmul(a1, t, torch.addcmul(b2, t, b3))
        v = torch.addcmul(a0, t, torch.addcmul(a1, t, torch.addcmul(a2, t, a3)))
        # Not the root of 1 + z^2, which overflows in a heavy tail.
        root = torch.hypot(z, self._one)
        rate = slope / (self._spread * root)
        return self._put(u, v), rate.log().sum(-1), _Point(z, t, b3, b2, slope, root, rate)

    def _slopes(self, at: _Point) -> Tensor:
        """Return the derivatives of ``log dv/du``."""
        bend = torch.addcmul(at.b2, at.t, at.b3, value=2.0)
        own = bend * at.rate / at.slope.square()
        return own - at.z / at.root.square() * self._inverse_scale

    def _mine(self, x: Tensor) -> Tensor:
        return x if x.shape[-1] == len(self.columns) else x[..., self._index]

    def _put(self, x: Tensor, mine: Tensor) -> Tensor:
        """Return ``x`` with other values in the mapped coordinates."""
        return mine if x.shape == mine.shape else x.index_copy(-1, self._index, mine)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.to_normal(y)[0]

    @full_precision
    def _call(self, x: Tensor) -> Tensor:
        v = self._mine(x)
        piece = self._holding(v.detach())
        a0, a1, a2, a3, b3, b2 = self._look_up(piece)

        def newton(t: Tensor) -> Tensor:
            value = torch.addcmul(a0, t, torch.addcmul(a1, t, torch.addcmul(a2, t, a3)))
            return t - (value - v) / torch.addcmul(a1, t, torch.addcmul(b2, t, b3))

        t = newton(newton(_root((a0, a1, a2, a3), v.detach())))
        s = torch.addcmul(self.splines.start, piece + t, self.splines.step)
        u = torch.addcmul(self.splines.loc, torch.sinh(s), self.splines.scale)
        return self._put(x, u)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of ``du/dv``, summed over coordinates."""
        return -self.to_normal(y)[1]

    def _piece(self, place: Tensor) -> Tensor:
        """Return the pieces at ``place``; NaN, which has none, comes out as it is."""
        return place.detach().nan_to_num(0.0).clamp(0, self._count - 1).long()

    def _holding(self, v: Tensor) -> Tensor:
        """Return the pieces that hold values ``v``; the outermost ones go on for ever."""
        piece = torch.zeros_like(v, dtype=torch.long)
        # By hand: searchsorted warns of copies that it makes, under vmap always.
        for bit in reversed(range(self._count.bit_length())):
            further = (piece + (1 << bit)).clamp_max(self._count - 1)
            piece = torch.where(self._knots[further + self._first] <= v, further, piece)
        return piece

    def _look_up(self, piece: Tensor) -> tuple[Tensor, ...]:
        return self._table[piece + self._first].unbind(-1)


class _Point(NamedTuple):
    """What derivatives need of a point, each ``(..., M)``; the rate is ``dv/du``."""

    z: Tensor
    t: Tensor
    b3: Tensor
    b2: Tensor
    slope: Tensor
    root: Tensor
    rate: Tensor


class _ToNormal(torch.autograd.Function):
    """``to_normal`` with its pass back."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, margins: Margins) -> tuple[Tensor, Tensor]:
        v, log_slope, point = margins._evaluate(u)
        ctx.margins = margins
        ctx.save_for_backward(u, *point)
        return v, log_slope

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> Any:
        u, *point = ctx.saved_tensors
        margins: Margins = ctx.margins
        if torch.is_grad_enabled():
            both = margins._evaluate(u)[:2]
            return *torch.autograd.grad(both, u, (grad, grad_log), create_graph=True), None
        at = _Point(*point)
        slopes = margins._mine(grad) * at.rate + grad_log[..., None] * margins._slopes(at)
        return margins._put(grad, slopes), None


def _pieces(c: Tensor) -> Tensor:
    """Return the polynomials of all pieces, ``(M, K - 3, 4)``, of coefficients ``(M, K)``."""
    c0, c1, c2, c3 = c[:, :-3], c[:, 1:-2], c[:, 2:-1], c[:, 3:]
    powers = (
        (c0 + 4 * c1 + c2) / 6,
        (c2 - c0) / 2,
        (c0 - 2 * c1 + c2) / 2,
        ((c3 - c0) - 3 * (c2 - c1)) / 6,
    )
    pieces = torch.stack(powers, -1)
    # Straight but for rounding; and what is left of a cube grows, far out.
    pieces[:, (0, -1), 2:] = 0.0
    return pieces


def _root(powers: tuple[Tensor, ...], v: Tensor) -> Tensor:
    """Return where an increasing cubic on [0, 1], or a line, is ``v``; without a graph."""
    a0, a1, a2, a3 = (power.detach() for power in powers)
    # Where the piece is a line, this is the root.
    t = (v - a0) / (a1 + a2 + a3)
    low, high = t.clamp(max=0.0), t.clamp(min=1.0)
    for _ in range(_NEWTON):
        above = a0 + t * (a1 + t * (a2 + t * a3)) - v
        low, high = torch.where(above <= 0, t, low), torch.where(above >= 0, t, high)
        step = t - above / (a1 + t * (2 * a2 + 3 * t * a3))
        inside = (step >= low) & (step <= high)
        t = torch.where(inside, step, 0.5 * (low + high))
    return t


def _check(splines: Splines) -> None:
    """Refuse what is no increasing map."""
    c = splines.coefficients
    if c.ndim != 2 or not (len(c) and _LEAST <= c.shape[1] <= _MOST):
        raise ValueError(
            f"`coefficients` must have shape (M, K), with {_LEAST} <= K <= {_MOST}; "
            f"got {tuple(c.shape)}"
        )
    for name, part in splines.tensors().items():
        if name != "coefficients" and part.shape != c.shape[:1]:
            raise ValueError(f"`{name}` must have shape ({len(c)},); got {tuple(part.shape)}")
        if not bool(torch.isfinite(part).all()):
            raise ValueError(f"`{name}` of a margin map must be finite")
    if not bool((splines.scale > 0).all() & (splines.step > 0).all()):
        raise ValueError("`scale` and `step` of a margin map must be positive")
    increments = c.double().diff()
    if not bool((increments > 0).all()):
        raise ValueError("`coefficients` of a margin map must increase")
    # Rounding moves increments by this much, and coefficients may have been rounded before.
    rounding = 4 * torch.finfo(torch.float32).eps * c.double().abs().amax(1)
    for end in (increments[:, :3], increments[:, -3:]):
        if bool((end.amax(1) - end.amin(1) > rounding).any()):
            raise ValueError("`coefficients` of a margin map must end in straight lines")
