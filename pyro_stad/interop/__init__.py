"""The outside world: ArviZ."""

from pyro_stad.interop.arviz import to_arviz

__all__ = ["to_arviz"]
