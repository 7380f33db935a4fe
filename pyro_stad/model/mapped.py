"""One model, a row of data for each of many objects: what is asked of all of them at once.

The model is written for one object, and read from the first. Its functions are mapped over the
others by ``torch.vmap``, which changes the data and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_stad.model.forms import AbstractForm, NoiseForm, ParameterForm
from pyro_stad.model.noise import LatentProblem

__all__ = ["MappedForm", "MappedProblem", "fingerprint", "mapped", "objects_in"]

_ROWS = 16_384


def objects_in(args: tuple[Any, ...]) -> int:
    """Return how many objects have a row in each of the arguments.

    Raises:
        TypeError: if one is no tensor with rows.
        ValueError: if they have not equally many, or none.
    """
    for a in args:
        if not isinstance(a, Tensor) or a.ndim == 0:
            raise TypeError(
                f"every argument must be a tensor with one row for each object; got {a!r}"
            )
    lengths = {len(a) for a in args}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"arguments must have as many rows as there are objects; got {sorted(lengths)}"
        )
    return lengths.pop()


def mapped(function: Callable[..., Any], x: Tensor, args: list[Tensor]) -> Any:
    """Return ``function(x, args)`` of every object.

    Arguments:
        function: of rows ``(N, K)`` and of the arguments of one object.
        x: rows of all objects, ``(b, N, K)``.
        args: their arguments, each ``(b, ...)``.

    Raises:
        ValueError: if the model can't be mapped over objects.
    """
    chunk = max(1, _ROWS // x.shape[1])
    try:
        return torch.vmap(lambda rows, *own: function(rows, own), chunk_size=chunk)(x, *args)
    except RuntimeError as error:
        raise ValueError(
            "the model can't be mapped over objects by torch.vmap; ask for them one by one "
            f"({error})"
        ) from error


class MappedProblem:
    """The log-likelihoods of many objects as functions of standard normal noise.

    Arguments:
        first: the problem of the first of them.
        args: the arguments of the model, with one row for each object.
    """

    def __init__(self, first: LatentProblem, args: tuple[Tensor, ...]) -> None:
        self.first, self.args, self.objects, self.calls = first, args, objects_in(args), 0
        self.size, self.like = first.size, first.like
        self.data = tuple(fingerprint([a[i] for a in args]) for i in range(self.objects))

    def of_objects(self, which: Tensor, u: Tensor) -> Tensor:
        """Return the log-likelihoods ``(b, N)`` of objects ``which``, ``(b,)``, at ``(b, N, D)``.

        Raises:
            ValueError: if the model can't be mapped over objects.
        """
        fit = mapped(self.first.unchecked, u, [a[which] for a in self.args])
        self.calls += fit.numel()
        return self.first.checked(fit)


class MappedForm:
    """A form of a model, of many objects.

    Arguments:
        form: that of the first of them.
        args: the arguments of the model, with one row for each object.
    """

    def __init__(self, form: AbstractForm, args: tuple[Tensor, ...]) -> None:
        self.form, self.args = form, args

    def of_objects(self, which: Tensor, x: Tensor) -> Tensor:
        """Return the log-densities ``(b, N)`` of objects ``which``, ``(b,)``, at ``(b, N, K)``."""
        return mapped(self.form.mappable, x, [a[which] for a in self.args])

    def values(self, which: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return the latent sites of objects ``which`` at ``(b, N, K)``, each ``(b, N, ...)``."""
        return mapped(self.form.values, x, [a[which] for a in self.args])

    def starts(self, problem: LatentProblem, u: Tensor) -> Tensor:
        """Return rows ``(B, N, K)`` of noise ``(B, N, D)`` of all objects."""
        if isinstance(self.form, NoiseForm):
            return u
        form = self.form
        assert isinstance(form, ParameterForm)

        def carried(rows: Tensor, own: tuple[Tensor, ...]) -> Tensor:
            return form.from_values(problem.values(rows, own), own)

        return _finite_rows(mapped(carried, u, list(self.args)))


def _finite_rows(x: Tensor) -> Tensor:
    """Return rows ``(B, N, K)`` in which others of the same object take the place of infinite ones.

    A draw may be rounded to a bound, which is at infinity on the line.

    Raises:
        ValueError: if an object has no finite row.
    """
    good = torch.isfinite(x).all(-1)
    dead = ~good.any(1)
    if dead.any():
        raise ValueError(
            f"all draws that object {int(dead.nonzero()[0])} is to start from are on the bounds of "
            "their priors; use form='noise', or float64"
        )
    # Of the finite rows, one after the other.
    order = (~good).to(torch.int8).argsort(dim=1, stable=True)
    place = torch.arange(x.shape[1], device=x.device) % good.sum(1, keepdim=True)
    other = x.gather(1, order.gather(1, place)[..., None].expand_as(x))
    return torch.where(good[..., None], x, other)


def fingerprint(rows: Sequence[Tensor]) -> str:
    """Return a digest of data."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
