"""Sphinx settings of the site; ``tools/docs/build_site.py`` lays out the sources and calls Sphinx with them."""

from typing import Any

from sphinx.application import Sphinx

from vlmprobe._version import __version__

project = "vlmprobe"
author = copyright = "The vlmprobe authors"
version = release = __version__
root_doc = "docs/index"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = []
myst_heading_anchors = 4  # as GitHub names them, so that links read in the repository lead to the same place here
nb_execution_mode = "off"  # the notebooks are kept with what they showed, and tests run them
nb_merge_streams = True
exclude_patterns = ["_extra"]
suppress_warnings = [
    "mystnb.unknown_mime_type",  # a widget's own state beside the text that is shown in its place
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
pygments_style = "a11y-high-contrast-light"  # of accessible-pygments, which the theme brings
pygments_dark_style = "a11y-high-contrast-dark"
html_title = f"vlmprobe {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def language_of_page(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Chinese pages say that they are, for fonts and for readers of the screen."""
    if page.startswith("docs/zh/") or page.endswith(".zh"):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("html-page-context", language_of_page)
