r"""Distilling a flow into a generator of one call: by its pairs, or by expectation maximisation.

*Pairs.* The flow carries each noise z to one x; regression on :math:`\lVert g(z) - x\rVert^2`
learns that map. It keeps the coupling of noise and data.

*EM distillation* needs no pairs and keeps no coupling. With
:math:`y = \cos\varphi\, g(z) + \sin\varphi\, \epsilon`, and teacher and student laws q and p of y,
it minimises the mean over angles of :math:`KL(q \Vert p)` by maximum likelihood of y from q, of
which z is the latent. The E-step takes K steps of Langevin dynamics on (:math:`\epsilon`, z), from
the student's own law towards :math:`\rho \propto N(\epsilon) N(z)\, q(y) / p(y)`: with
:math:`\delta = w_p - w_q`, the difference of angular velocities, the score of :math:`q/p` is
:math:`\cot\varphi\, \delta`, and

.. math::
    \epsilon \mathrel{+}= \tfrac{\gamma_\epsilon^2}{2} (\cos\varphi\, \delta - \epsilon)
        + \gamma_\epsilon n, \qquad
    z \mathrel{+}= \tfrac{\gamma_z^2}{2} \big(J_g^T \cos\varphi \cot\varphi\, \delta - z\big)
        + \gamma_z n',

where :math:`\gamma_z` is multiplied by :math:`\min(1, \tan\varphi)`, so that the drift of z is
bounded at the data end. The M-step moves g(z) by what :math:`\epsilon` has come to. Most of that is
noise that was there, or was added: *noise cancellation* keeps books of it,
:math:`a \leftarrow (1 - \gamma_\epsilon^2/2)\, a + \gamma_\epsilon n`, and moves by
:math:`\epsilon - a`, in which there is but the drift. K = 0 stands for the limit without moves of
z: one step of the drift, the gradient of the reverse divergence :math:`KL(p \Vert q)`, of
variational score distillation and Diff-Instruct.

The student's law needs a score of its own: a second network, matched to fresh draws of g. It has to
keep up, and so takes several steps for one of the generator.

References:
    Xie et al. (2024), EM Distillation for One-Step Diffusion Models; Luo et al. (2023),
    Diff-Instruct; Wang et al. (2023), ProlificDreamer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_stad._checks import check_count, check_flag, check_positive
from pyro_stad._events import beside
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.transport import OneStep

__all__ = ["EMSettings", "OneStepEM", "pairs_loss"]

# Below this angle teacher and student hardly differ, and their scores are as noisy as large.
_LEAST_ANGLE = 0.05


@dataclass(frozen=True)
class EMSettings:
    r"""How the latent variables of EM distillation are inferred.

    Arguments:
        inference_steps: K, the Langevin steps of an E-step; 0 for the mode-seeking limit.
        noise_step: :math:`\gamma_\epsilon`.
        latent_step: :math:`\gamma_z`; steps of a tenth have shown the bias of dynamics that are
            not corrected.
        student_steps: steps of the student's score for one of the generator.
        noise_cancellation: whether the M-step leaves out the noise that it knows.
    """

    inference_steps: int = 4
    noise_step: float = 0.4
    latent_step: float = 0.02
    student_steps: int = 3
    noise_cancellation: bool = True

    def __post_init__(self) -> None:
        check_count(self.inference_steps, "inference_steps", least=0, most=1000)
        check_count(self.student_steps, "student_steps", most=1000)
        check_positive(self.noise_step, "noise_step")
        check_positive(self.latent_step, "latent_step")
        check_flag(self.noise_cancellation, "noise_cancellation")


def pairs_loss(one_step: OneStep, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Return the mean squared distance of draws from where the flow leads, a coordinate."""
    return (one_step.draw(z, context) - x).square().mean()


class OneStepEM(nn.Module):
    """A generator and the score of its law, which are trained together.

    Arguments:
        generator: what is distilled.
        teacher: the field of the law that is asked for.
        settings: of the E-step.
        contexts: rows ``(N, C)`` that the law is learned given, if it depends on one.
    """

    def __init__(
        self,
        generator: OneStep,
        teacher: AbstractAngularField,
        settings: EMSettings,
        contexts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.generator, self.settings, self.contexts = generator, settings, contexts
        self.student = copy.deepcopy(teacher).requires_grad_(True)
        # In a tuple: it is not trained.
        self._teacher = (teacher,)

    def loss(self, count: int, source: torch.Generator, like: Tensor) -> Tensor:
        """Return the student's loss, and in one of so many steps, by lot, the generator's as well.

        Each has gradients of its own network alone. A lot needs no count that a resumed run would
        have to know.
        """
        loss = self._given_lot(count, source)._student_loss(count, source, like)
        lot = torch.rand((), generator=source, device=source.device).item()
        if lot * self.settings.student_steps < 1:
            loss = loss + self._given_lot(count, source)._generator_loss(count, source, like)
        return loss

    def _given_lot(self, count: int, source: torch.Generator) -> OneStepEM:
        """Return the same networks, given contexts that are drawn by lot, if they take any."""
        if self.contexts is None:
            return self
        rows = torch.randint(len(self.contexts), (count,), generator=source, device=source.device)
        new, context = copy.copy(self), self.contexts[rows]
        given = {"generator": self.generator.given(context), "student": self.student.given(context)}
        new._modules = {**self._modules, **given}
        teacher: Any = self._teacher[0].given(context)
        new._teacher = (teacher,)
        return new

    def _drawn(self, z: Tensor) -> Tensor:
        return self.generator.draw(z, self.generator.context)

    def _normal(self, count: int, source: torch.Generator, like: Tensor) -> Tensor:
        shape = (count, *like.shape[1:])
        return torch.randn(shape, generator=source, dtype=like.dtype, device=like.device)

    def _angles(self, count: int, source: torch.Generator, like: Tensor) -> Tensor:
        low, high = _LEAST_ANGLE, self._teacher[0].t_max
        u = torch.rand(count, generator=source, dtype=like.dtype, device=like.device)
        return low + (high - low) * u

    def _student_loss(self, count: int, source: torch.Generator, like: Tensor) -> Tensor:
        """Return the loss of matching the angular velocity to fresh draws of the generator."""
        with torch.no_grad():
            x = self._drawn(self._normal(count, source, like))
        angle, noise = self._angles(count, source, like), self._normal(count, source, like)
        cos, sin = (beside(f(angle), x) for f in (torch.cos, torch.sin))
        found = self.student.velocity(angle, cos * x + sin * noise)
        return (found - (cos * noise - sin * x)).square().mean()

    def _generator_loss(self, count: int, source: torch.Generator, like: Tensor) -> Tensor:
        z, moved = self._inferred(count, source, like)
        x = self._drawn(z)
        return (x - (x.detach() + moved)).square().mean()

    def _inferred(self, count: int, source: torch.Generator, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents, and by how much their draws are to move: the E-step."""
        given, steps = self.settings, max(1, self.settings.inference_steps)
        z, noise = (self._normal(count, source, like) for _ in range(2))
        angle = self._angles(count, source, like)
        decay, size = 0.5 * given.noise_step**2, given.noise_step
        latent_size = given.latent_step * beside(torch.tan(angle).clamp(max=1), z)
        known = noise
        for _ in range(steps):
            drift, pull = self._drifts(angle, z, noise)
            fresh = self._normal(count, source, like)
            noise = noise + decay * (drift - noise) + size * fresh
            known = (1 - decay) * known + size * fresh
            if given.inference_steps:
                other = self._normal(count, source, like)
                z = z + 0.5 * latent_size**2 * (pull - z) + latent_size * other
        # In units in which one step moves by the drift itself, whatever its size.
        left = noise - known if given.noise_cancellation else noise
        return z, left / (decay * steps)

    def _drifts(self, angle: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return what moves the noise, and what moves z by way of the generator."""
        cos, sin = (beside(f(angle), z) for f in (torch.cos, torch.sin))
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            x = self._drawn(at)
        with torch.no_grad():
            y = cos * x + sin * noise
            apart = self.student.velocity(angle, y) - self._teacher[0].velocity(angle, y)
            push = cos / sin * cos * apart
        (pull,) = torch.autograd.grad(x, at, push)
        return cos * apart, pull
