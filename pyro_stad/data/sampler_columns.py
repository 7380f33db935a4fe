"""Names that samplers give to columns of their own: densities, counters, weights.

They stand beside the parameters in nearly every file, and nothing but the name tells them apart.
"""

from __future__ import annotations

__all__ = ["LOG_WEIGHTS", "WEIGHTS", "is_density", "sampler_column"]

_DENSITIES = """
    lp log_p logp log_prob logprob lnprob logpost log_post log_posterior lnpost logl log_l loglike
    lnlike loglikelihood log_likelihood log_like lnl logprior log_prior lnprior logl_birth
    loglikelihood_birth minuslogpost minuslogprior minusloglike neglogpost chi2 like post
""".split()
_COUNTERS = """
    iteration iter chain draw step walker sample_id .iteration .chain .draw nlive insertion
    insertion_index
""".split()
_BEGINNINGS = ("chi2_", "minuslog")
WEIGHTS = ("weights", "importance_weights", "importance_weight")
LOG_WEIGHTS = ("log_weight", "log_weights", "logweight", "logweights", "log_w", "logw", "logwt")


def sampler_column(name: str) -> str | None:
    """Return what a column of this name is to a sampler, or None for a parameter."""
    plain = name.lower()
    if is_density(name):
        return "log-density of the sampler"
    if plain in (*WEIGHTS, *LOG_WEIGHTS):
        return "weights"
    if plain in _COUNTERS:
        return "counter of the sampler"
    return "the sampler's own" if plain.endswith("__") else None


def is_density(name: str) -> bool:
    """Tell whether a column of this name holds the log-density, or a part of it."""
    plain = name.lower()
    return plain in _DENSITIES or plain.startswith(_BEGINNINGS)
