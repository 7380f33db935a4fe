"""Sphinx configuration. Nothing here asks a network: see the extensions of ``docs/_ext``."""

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from inventories import mapping  # noqa: E402

project = "pyro_stad"
author = "pyro_stad developers"
release = metadata.version("pyro-stad")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "docstrings",
    "links",
    "mathml",
    "reference",
]
exclude_patterns = ["_build", "generated/*.txt"]
templates_path = ["_templates"]
nitpicky = True
# Of other projects, beyond their inventories; and private names, in the signatures of public ones.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|torchdiffeq|pyro|numpy|pandas|arviz|xarray)\..*"),
    ("py:.*", r"(pyro_stad\.(.+\.)?)?_\w+"),
    ("py:class", "Array"),  # of numpy, in double precision
    ("py:class", r"concurrent\.futures\._base\.\w+"),  # where the class was written
]

myst_enable_extensions = ["colon_fence", "dollarmath"]
# Text notebooks are run whenever they are read; an error in one is an error of the build.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_execution_show_tb = True

autosummary_generate = True
autodoc_member_order = "bysource"
# Once, in the signature, an argument to a line: descriptions have no types.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 68
napoleon_custom_sections = [
    (section, "params_style") for section in ("Arguments", "Attributes", "Class attributes")
]
intersphinx_mapping = mapping(HERE / "inventories", HERE / "_build" / "inventories")

html_theme = "furo"
html_title = "pyro_stad"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e4f", "color-brand-content": "#0b6e4f"},
    "dark_css_variables": {"color-brand-primary": "#5fc9a3", "color-brand-content": "#5fc9a3"},
}
