"""The eight schools, non-centred, by BlackJAX's samplers of many chains: for many_chains.py."""

from __future__ import annotations

import os
import time
from typing import Any

# Before jax is imported: one thread, as all others here.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import blackjax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import torch  # noqa: E402

from pyro_stad.samplers.diagnostics import diagnose  # noqa: E402

__all__ = ["run"]

_CHAINS, _WARM_UP = 128, 200
# As few as have the effective draws that are asked for.
_DRAWS = {"chees": (200, 400, 800, 1600), "meads": (400, 800, 1600, 3200)}


def run(kind: str, effects: list[float], errors: list[float], wanted: float) -> dict[str, Any]:
    """Return seconds to so many effective draws, with compilation, and when it is done.

    Arguments:
        kind: ``"chees"`` or ``"meads"``.
        effects, errors: of the schools.
        wanted: effective draws of the worst coordinate, of all chains.
    """
    y, noise = jnp.array(effects), jnp.array(errors)

    def log_density(x: Any) -> Any:
        mu, log_tau, eta = x[0], x[1], x[2:]
        tau = jnp.exp(log_tau)
        prior = -0.5 * (mu / 5) ** 2 - jnp.log(1 + (tau / 5) ** 2) + log_tau
        fit = -0.5 * jnp.sum(((y - mu - tau * eta) / noise) ** 2)
        return prior - 0.5 * jnp.sum(eta**2) + fit

    for draws in _DRAWS[kind]:
        whole = jax.jit(lambda key, n=draws: _chains(kind, log_density, key, n))
        seconds = []
        for _ in range(2):  # the second time everything is compiled
            started = time.perf_counter()
            x = whole(jax.random.PRNGKey(0)).block_until_ready()
            seconds.append(time.perf_counter() - started)
        known = diagnose(torch.tensor(np.array(x)).permute(2, 1, 0))
        if known.ess.min() >= wanted:
            break
    return {
        "kind": kind, "draws": draws, "effective": known.ess.min().item(),
        "r_hat": known.r_hat.max().item(), "seconds": seconds[0], "compiled": seconds[1],
    }  # fmt: skip


def _chains(kind: str, log_density: Any, key: Any, draws: int) -> Any:
    """Return draws of all chains after a warm-up, ``(draws, chains, 10)``."""
    keys = jax.random.split(key, 3)
    start = jax.random.normal(keys[0], (_CHAINS, 10))
    if kind == "chees":
        warm_up = blackjax.chees_adaptation(log_density, _CHAINS)
        (state, learned), _ = warm_up.run(keys[1], start, 0.1, optax.adam(0.05), _WARM_UP)
        kernel = blackjax.dynamic_hmc(log_density, **learned)
    else:
        warm_up = blackjax.meads_adaptation(log_density, _CHAINS)
        (state, learned), _ = warm_up.run(keys[1], start, _WARM_UP)
        kernel = blackjax.ghmc(log_density, **learned)

    def move(state: Any, key: Any) -> Any:
        state, _ = jax.vmap(kernel.step)(jax.random.split(key, _CHAINS), state)
        return state, state.position

    return jax.lax.scan(move, state, jax.random.split(keys[2], draws))[1]
