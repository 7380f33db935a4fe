"""The demonstration: sequential updating of a linear regression whose answer is known."""

from pyro_stad.demo.story import run_demo

__all__ = ["run_demo"]
