"""The demonstration: sequential updating of a linear regression whose answer is known."""

from pyro_stad.demo.story import DEMO_BUDGET, run_demo

__all__ = ["DEMO_BUDGET", "run_demo"]
