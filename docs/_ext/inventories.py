"""Names of other projects to link to, from text files, so that the pages build without a network.

``docs/inventories/NAME.txt`` has the address of a project's pages in its first line, then a line
``name domain:role page#anchor`` for each name that these pages use; ``$`` in a page stands for the
name. To add one, look it up where there is a network:
``python -m sphinx.ext.intersphinx ADDRESS/objects.inv | grep NAME``.
"""

from __future__ import annotations

import zlib
from pathlib import Path

__all__ = ["mapping"]


def mapping(texts: Path, out: Path) -> dict[str, tuple[str, str]]:
    """Write an inventory for each text file, and return what intersphinx takes."""
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for path in sorted(texts.glob("*.txt")):
        address, *lines = path.read_text().splitlines()
        entries = [line.split() for line in lines if line.strip()]
        body = "".join(
            f"{name} {role} 1 {page.replace('$', name)} -\n" for name, role, page in entries
        )
        head = f"# Sphinx inventory version 2\n# Project: {path.stem}\n# Version: \n"
        head += "# The remainder of this file is compressed using zlib.\n"
        target = out / f"{path.stem}.inv"
        target.write_bytes(head.encode() + zlib.compress(body.encode()))
        found[path.stem] = (address, str(target))
    return found
