"""The command line, ``pyro-stad``; it starts in :mod:`pyro_stad.__main__`."""
