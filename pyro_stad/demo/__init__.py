"""The demonstration: sequential updating of two problems whose answers are known."""

from pyro_stad.demo.settings import DemoSettings
from pyro_stad.demo.story import run_demo
from pyro_stad.demo.text import text

__all__ = ["DemoSettings", "run_demo", "text"]
