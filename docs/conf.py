"""Sphinx configuration."""

from importlib import metadata

project = "pyro_stad"
author = "pyro_stad developers"
release = metadata.version("pyro-stad")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
html_theme = "furo"
html_title = "pyro_stad"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_custom_sections = [("Arguments", "params_style"), ("Class attributes", "Attributes")]
napoleon_use_ivar = True
nitpicky = False
