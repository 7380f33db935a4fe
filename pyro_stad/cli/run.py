"""The command line, run: errors are one line on standard error, and an exit code."""

from __future__ import annotations

import sys

import typer

from pyro_stad.cli.main import app

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        code = app(arguments, standalone_mode=False, prog_name="pyro-stad")
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return 1
    except Exception as error:
        # Usage errors of typer know their exit code; the classes have moved between versions.
        if hasattr(error, "format_message"):
            typer.echo(f"pyro-stad: {error.format_message()}", err=True)
            return 2
        if isinstance(error, (OSError, ValueError, TypeError, RuntimeError, ImportError)):
            typer.echo(f"pyro-stad: {' '.join(str(error).split())}", err=True)
            return 1
        raise
    return code if isinstance(code, int) else 0
