"""The command line, ``pyro-stad``."""

from pyro_stad.cli.main import main

__all__ = ["main"]
