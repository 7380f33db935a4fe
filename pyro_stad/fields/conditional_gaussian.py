r"""The oracle of conditional laws: normal data whose mean is linear in a context.

For :math:`x_0 | c \sim N(A c + b, C)` the law of :math:`y = \cos\varphi\, x_0 + \sin\varphi\,
\epsilon` given c is normal, and with its precision :math:`P = (\cos^2\varphi\, C + \sin^2\varphi\,
I)^{-1}` and :math:`m = A c + b`,

.. math:: E[x_0 | y, c] = m + \cos\varphi\, C P (y - \cos\varphi\, m), \qquad
    w = (\cos\varphi\, y - E[x_0 | y, c]) / \sin\varphi .
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from pyro_stad._events import beside
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.paths import AbstractPath

__all__ = ["ConditionalGaussianField"]


class ConditionalGaussianField(AbstractAngularField):
    """The exact field of normal data whose mean is linear in a context.

    Arguments:
        path: the Gaussian path.
        weight: A, with shape ``(D, C)``.
        bias: b, with shape ``(D,)``.
        covariance: C, with shape ``(D, D)``.

    Raises:
        ValueError: where a velocity is asked for and no context was given.
    """

    weight: Tensor
    bias: Tensor
    _spectrum: Tensor
    _axes: Tensor
    mean: Tensor | None = None

    def __init__(
        self, path: AbstractPath, weight: Tensor, bias: Tensor, covariance: Tensor
    ) -> None:
        super().__init__()
        self._set_path(path, bias.shape)
        self.context_shape = weight.shape[1:]
        spectrum, axes = torch.linalg.eigh(covariance)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("_spectrum", spectrum)
        self.register_buffer("_axes", axes)

    def given(self, context: Tensor) -> ConditionalGaussianField:
        field = copy.copy(self)
        field.context, field.mean = context, context @ self.weight.mT + self.bias
        return field

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        if self.mean is None:
            raise ValueError("this field depends on a context: use field.given(context)")
        cos, sin = beside(torch.cos(t), x), beside(torch.sin(t), x)
        variance = cos * cos * self._spectrum + sin * sin
        offset = (x - cos * self.mean) @ self._axes
        data = self.mean + cos * ((self._spectrum / variance * offset) @ self._axes.mT)
        return (cos * x - data) / sin

    def log_density(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the log-density of data given rows of context, shape ``(B,)``."""
        offset = (x - context @ self.weight.mT - self.bias) @ self._axes
        squares = (offset.square() / self._spectrum).sum(-1)
        log_det = self._spectrum.log().sum()
        return -0.5 * (squares + log_det + self.features * math.log(2 * math.pi))
