"""The outside world: ArviZ."""

from pyro_stad.interop.arviz import to_arviz
from pyro_stad.interop.summary import posterior_summary

__all__ = ["posterior_summary", "to_arviz"]
