"""Names in prose become links, in docstrings and on pages alike.

A name between backquotes is a link if it is the name of one thing: a documented object by a full
name or its last part, a method as ``Class.method`` or ``prior.method()``, a module, or a thing of
another project's inventory: a class by its last part too, a function by its full name only.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.intersphinx import InventoryAdapter
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

__all__ = ["setup"]

NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?")
# Words of everyday prose that happen to be names too.
PLAIN = {"Normal", "audit", "match", "split", "train"}
# How the pages call an object of a class.
USUAL = {"prior.": "FlowPrior."}


class LinkNames(SphinxPostTransform):
    """Link literals that name one documented thing."""

    default_priority = 5

    def run(self, **kwargs: object) -> None:
        known = names_of(self.env)
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext()
            if isinstance(literal.parent, nodes.reference) or not NAME.fullmatch(text):
                continue
            target = find(known, text.removesuffix("()"))
            if target is None or target.get("docname") == self.env.docname:
                continue
            literal.replace_self(self.link(target, literal.deepcopy()))

    def link(self, target: dict[str, str], content: nodes.Node) -> nodes.reference:
        if "uri" in target:
            return nodes.reference("", "", content, refuri=target["uri"], internal=False)
        builder = self.app.builder
        return make_refnode(
            builder, self.env.docname, target["docname"], target["id"], content, target["name"]
        )


def find(known: dict[str, dict[str, str]], text: str) -> dict[str, str] | None:
    """Return where a name leads to: as it stands, or by its last part if it is a full name."""
    for usual, name in USUAL.items():
        text = re.sub(rf"^{re.escape(usual)}", name, text)
    last = text.split(".")[-1] if text.startswith("pyro_stad.") else text
    return known.get(text) or known.get(last)


@functools.cache
def names_of(env: BuildEnvironment) -> dict[str, dict[str, str]]:
    """Return where every name that stands for one thing leads to."""
    places: dict[str, list[dict[str, str]]] = {}
    for name, target in _targets(env):
        parts = name.split(".")
        last = {"whole": name, "method": ".".join(parts[-2:])}.get(target["kind"], parts[-1])
        for spelling in {name, last} - PLAIN:
            places.setdefault(spelling, []).append(target)
    return {spelling: found[0] for spelling, found in places.items() if len(found) == 1}


def _targets(env: BuildEnvironment) -> Iterator[tuple[str, dict[str, str]]]:
    for name, entry in env.domains["py"].objects.items():
        if not entry.aliased:
            inside = entry.objtype in ("method", "property", "attribute")
            kind = "method" if inside else "whole" if entry.objtype == "module" else "object"
            place = {"docname": entry.docname, "id": entry.node_id, "name": name, "kind": kind}
            yield name, place
    for role, entries in InventoryAdapter(env).main_inventory.items():
        kind = "whole" if role == "py:function" else "object"
        for name, item in entries.items():
            yield name, {"uri": item.uri, "name": name, "kind": kind}


def resolve(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Node
) -> nodes.reference | None:
    """Resolve a reference to the place of definition; the page has a shorter name."""
    last = node.get("reftarget", "").split(".")[-1]
    target = names_of(env).get(last) if node.get("refdomain") == "py" else None
    if target is None:
        return None
    if "uri" in target:
        return nodes.reference("", "", content, refuri=target["uri"], internal=False)
    return make_refnode(
        app.builder, node["refdoc"], target["docname"], target["id"], content, target["name"]
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(LinkNames)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
