"""Formulas as MathML, which browsers draw themselves: no script, no font from a network."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

__all__ = ["formula", "setup"]

# TeX leaves a thin space on either side of the name of a function, but none before its bracket.
SPACE = '<mspace width="0.167em" />'
NAMED = r"<mi>(?:log|exp|cos|sin|cot|max|min)</mi>"
AFTER = re.compile(rf"({NAMED})(?=<m)(?!<mo|<mspace)")
BEFORE = re.compile(rf"(</mi>|</mn>|</msub>|</msup>)(?={NAMED}<)")


def formula(latex: str, display: str) -> str:
    """Return a formula as MathML; ``display`` is ``"inline"`` or ``"block"``."""
    return AFTER.sub(rf"\1{SPACE}", BEFORE.sub(rf"\1{SPACE}", convert(latex, display=display)))


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(formula(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{formula(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
