r"""Fitting of margins: from the weighted samples of a coordinate to its map, if it needs one.

The map that makes a law with distribution function F normal is :math:`\Phi^{-1} \circ F`. In the
bulk, F is known at some quantiles, at equal steps of the normal score; between them the score is an
increasing cubic in s (Fritsch and Carlson), and beyond the outermost ones it is that of fitted
tails (:mod:`pyro_stad.data.margin_tails`). The spline takes the score at each coefficient's place
for that coefficient (Schoenberg's variation-diminishing spline): it increases as the score does,
and rounds off what has a kink.

How many quantiles, and in which coordinate s, held-out samples decide, by the log-density of each
coordinate alone: the fewest that are as good as the best, but for a standard error. (Those within
0.02 nat of the best left a half-normal law 0.0033 nat from the truth, these 0.0008.) They decide
too whether there is to be a map at all: far from the middle, it has to describe them better than a
normal law does, by a margin that a normal law's own samples never reach; or there are more of them
far out than a normal law allows; or there is a wall. Two modes ask for no map. A flow learns them
better than what is left when the gap between them is closed in each coordinate: for two lobes on
the diagonal of a square, held-out log-densities were 0.2 nat lower with maps than without.

References:
    Fritsch and Carlson (1980), Monotone Piecewise Cubic Interpolation, SIAM Journal on Numerical
    Analysis 17(2); Marsden and Schoenberg (1966), On Variation Diminishing Spline Approximation
    Methods; Breiman, Friedman, Olshen and Stone (1984), Classification and Regression Trees.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline
from torch import Tensor

from pyro_stad._weights import effective_size
from pyro_stad.data.angles import Angle
from pyro_stad.data.bounds import Bounds
from pyro_stad.data.margin_rows import (
    Bulk,
    Place,
    Rows,
    bulk_of,
    far_out,
    in_order,
    mean_and_error,
    moments,
    normal_log_prob,
    place_of,
)
from pyro_stad.data.margin_tails import Array, Wall
from pyro_stad.data.margins import Margins, Splines
from pyro_stad.data.standardise import spread_of

__all__ = ["fit_margins"]

_MOST_ROWS, _MOST_HELD = 50_000, 10_000
_FOLDS = 4
_CELLS = (2, 4, 6, 9, 14, 22, 34)
_ROWS_PER_CELL = 8
_SHARES = (0.5, 0.02)  # of the samples, in the shortest interval, that is the middle of s
_STEPS, _FINEST, _COARSEST = 1000, 0.05, 0.15
_LEAST_INCREMENT = 1e-5  # of coefficients of about ten, in single precision
_LEAST_GAIN, _ERRORS = 0.01, 3.0  # nats, and standard errors
_MOST_GAIN, _OUTER = 5.0, 2.0


def fit_margins(
    values: Tensor,
    weights: Tensor | None,
    bounds: Bounds | None,
    effective: float,
    generator: torch.Generator,
    *,
    columns: tuple[int, ...] | None = None,
) -> Margins | None:
    """Return the maps of the coordinates that need one, in float64; None if none does.

    Arguments:
        values: samples with shape ``(N, D)``, in the coordinates without walls or seams.
        weights: their weights with shape ``(N,)``, or None.
        bounds: of the parameters, which say where there are walls; an angle gets no map.
        effective: the number of independent rows that the samples are worth.
        generator: source of randomness, for the rows that are held out in turn.
        columns: the coordinates that are to be mapped, need it or not; None lets samples decide.
            None is returned if one of them has too few different values.
    """
    order = torch.randperm(len(values), generator=generator)[:_MOST_ROWS]
    chosen = values[order].double().cpu().numpy()
    share = np.ones(len(order)) if weights is None else weights[order].double().cpu().numpy()
    # Fewer rows than all, and correlated ones: worth what they are as a share of all.
    weighted = effective_size(torch.from_numpy(share)).item()
    decided = columns is not None
    # A resample's weights are uneven by chance alone: it is worth what it was drawn from.
    worth = effective if decided else min(weighted, effective)
    loc, scale = (part.tolist() for part in spread_of(values, weights))
    found = {}
    for column in range(values.shape[1]) if columns is None else columns:
        bound = None if bounds is None else bounds[column]
        if not isinstance(bound, Angle):
            walls = _walls(bound)
            # Towards a wall the coordinate is a logarithm, and has its unit.
            origin, unit = (0.0, 1.0) if any(walls) else (loc[column], scale[column])
            rows = Rows((chosen[:, column] - origin) / unit, share * worth / share.sum())
            margin = _fit(rows, walls, decided=decided)
            if margin is not None:
                found[column] = (_in_unit(margin[0], origin, unit), margin[1])
    if not found or (columns is not None and len(found) < len(columns)):
        return None
    splines, tails = zip(*found.values())
    return Margins(tuple(found), _joined(splines), tails)


def _walls(bound: tuple[float, float] | None) -> tuple[bool, bool]:
    """Return on which sides of the unbounded coordinate there is a wall."""
    low, high = (bound is not None and math.isfinite(side) for side in bound or (0, 0))
    # The bijection of one bound, upper or lower, has it at minus infinity.
    return low or high, low and high


def _fit(
    rows: Rows, walls: tuple[bool, bool], *, decided: bool
) -> tuple[Splines, tuple[str, str]] | None:
    """Return the map of rows in random order and its tails, or None if they need none.

    That they need one may be ``decided``.
    """
    held = rows.take(np.arange(len(rows.u))[:_MOST_HELD])
    candidates = [(share, cells) for share in _SHARES for cells in _CELLS]
    candidates = [
        c for c in candidates if c[1] == _CELLS[0] or c[1] * _ROWS_PER_CELL <= 0.75 * held.worth
    ]
    fold = np.arange(len(held.u)) % _FOLDS
    scores, normal = np.full((len(candidates), len(fold)), -np.inf), np.empty(len(fold))
    for k in range(_FOLDS):
        train, test = in_order(held.take(fold != k)), held.u[fold == k]
        normal[fold == k] = normal_log_prob(train, test)
        bulk = bulk_of(train, walls)
        if bulk is None:
            return None
        for i, (share, cells) in enumerate(candidates):
            spline = _spline(bulk, place_of(train, share), cells)
            scores[i, fold == k] = _log_prob(spline, test)
    means = scores @ held.weights / held.worth
    losses = [mean_and_error(held, scores[int(means.argmax())] - each) for each in scores]
    good = [i for i, (loss, error) in enumerate(losses) if loss <= error]
    best = min(good, key=lambda i: (candidates[i][1], -means[i]))
    bulk = bulk_of(in_order(rows), walls)
    if bulk is None or not (decided or _needs_map(held, scores[best] - normal, bulk)):
        return None
    share, cells = candidates[best]
    spline = _spline(bulk, place_of(bulk.rows, share), cells)
    return spline, (str(bulk.left.tail), str(bulk.right.tail))


def _needs_map(rows: Rows, gain: Array, bulk: Bulk) -> bool:
    """Tell whether held-out rows gain enough log-density over a normal law."""
    # A few rows far out, however unlikely under a normal law, don't decide alone.
    gain = gain.clip(max=_MOST_GAIN)
    mean, error = mean_and_error(rows, gain)
    if not mean > 0:
        return False
    # Rows far out have made the normal law so wide that the gain is in the middle.
    if far_out(rows) and mean > _LEAST_GAIN and mean > _ERRORS * error:
        return True
    loc, scale = moments(rows)
    outer = np.where(np.abs(rows.u - loc) > _OUTER * scale, gain, 0.0)
    mean, error = mean_and_error(rows, outer)
    if mean > _LEAST_GAIN and mean > _ERRORS * error:
        return True
    # A wall is known: that samples near it are as many as behind a wall, is no chance.
    return mean > error and any(isinstance(end.tail, Wall) for end in bulk[1:])


def _log_prob(splines: Splines, u: Array) -> Array:
    """Return the log-density of a coordinate alone."""
    margin = Margins((0,), splines, (("", ""),))
    v, log_slope = margin.to_normal(torch.from_numpy(u)[:, None])
    return (log_slope - 0.5 * v[:, 0].square() - 0.5 * math.log(2 * math.pi)).numpy()


def _spline(bulk: Bulk, place: Place, cells: int) -> Splines:
    """Return the map that takes its bulk from ``cells + 1`` quantiles."""
    low = float(place.of(bulk.left.edge - bulk.left.reach()))
    high = float(place.of(bulk.right.edge + bulk.right.reach()))
    step = float(np.clip((high - low) / _STEPS, _FINEST, _COARSEST))
    count = math.ceil((high - low) / step) + 1
    s = low + step * np.arange(count, dtype=np.float64)
    c = _score(bulk, place, cells, s)
    increments = np.diff(c).clip(min=_LEAST_INCREMENT)
    # Straight lines at the ends: three increments that are equal.
    increments = np.pad(increments, 2, mode="edge")
    c = np.concatenate([[0.0], np.cumsum(increments)]) + c[0] - 2 * increments[0]
    numbers = torch.tensor(
        [[place.loc], [place.scale], [low - step], [step]], dtype=torch.float64, device="cpu"
    )
    loc, scale, start, distance = numbers.unbind()
    return Splines(loc, scale, start, distance, torch.from_numpy(c)[None])


def _score(bulk: Bulk, place: Place, cells: int, s: Array) -> Array:
    """Return the normal scores at places ``s``."""
    u = place.loc + place.scale * np.sinh(s)
    below, above = u < bulk.left.edge, u > bulk.right.edge
    v = np.empty_like(s)
    v[below] = -bulk.left.beyond(bulk.left.edge - u[below])
    v[above] = bulk.right.beyond(u[above] - bulk.right.edge)
    inside = ~(below | above)
    v[inside] = _increasing_cubic(bulk, place, cells)(s[inside])
    return v


def _increasing_cubic(bulk: Bulk, place: Place, cells: int) -> CubicHermiteSpline:
    """Return the score in the bulk, which meets the tails with their slope."""
    v = np.linspace(-bulk.left.score, bulk.right.score, cells + 1)
    u = np.interp(v, bulk.rows.scores(), bulk.rows.u)
    s = place.of(u)
    # Rows that are alike make several quantiles one.
    apart = np.diff(s, prepend=-np.inf) > 1e-9
    s, v = s[apart], v[apart]
    step, slope = np.diff(s), np.diff(v) / np.diff(s)
    before, after = step[:-1] + 2 * step[1:], 2 * step[:-1] + step[1:]
    inner = (before + after) / (before / slope[:-1] + after / slope[1:])
    # At most three times the secant: beyond, a cubic may turn back.
    outer = [
        min(end.slope * place.scale * math.cosh(at), 3 * secant)
        for end, at, secant in zip(bulk[1:], s[[0, -1]], slope[[0, -1]])
    ]
    return CubicHermiteSpline(s, v, np.concatenate([outer[:1], inner, outer[1:]]))


def _in_unit(splines: Splines, origin: float, unit: float) -> Splines:
    return replace(splines, loc=origin + unit * splines.loc, scale=unit * splines.scale)


def _joined(splines: tuple[Splines, ...]) -> Splines:
    """Return maps of one coordinate each as one, their last straight lines drawn out."""
    most = max(part.coefficients.shape[1] for part in splines)
    rows = []
    for part in splines:
        c = part.coefficients
        more = torch.arange(1, most - c.shape[1] + 1, dtype=c.dtype, device=c.device)
        rows.append(torch.cat([c, c[:, -1:] + (c[:, -1:] - c[:, -2:-1]) * more], 1))
    others = ("loc", "scale", "start", "step")
    parts = {name: torch.cat([getattr(part, name) for part in splines]) for name in others}
    return Splines(**parts, coefficients=torch.cat(rows))
