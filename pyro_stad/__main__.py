"""``pyro-stad``, and ``python -m pyro_stad``: the command line, if its extra is installed."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit; say in one line what to install where it can't run."""
    try:
        from pyro_stad.cli.run import main as run
    except ModuleNotFoundError as missing:
        if missing.name != "typer":
            raise
        print(
            "pyro-stad: the command line needs typer: pip install 'pyro-stad[cli]'", file=sys.stderr
        )
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
