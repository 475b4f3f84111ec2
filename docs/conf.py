"""How the documentation site is built: ``make docs``, or ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

Pages of the reference that would only repeat the code are written by ``docs/reference.py`` when the site is built, so a new
public name, a new option of a command or a new notebook is on the site without being entered anywhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import reference  # noqa: E402

import scbig  # noqa: E402

project = "scBIG"
author = "The scBIG developers"
copyright = "The scBIG developers; Apache License 2.0"
version = release = scbig.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path: list[str] = []
nitpicky = False
suppress_warnings = ["myst.xref_ambiguous", "ref.python"]  # Two packages have an Embedding.

# Pages. Headings get the anchors that code hosts give them, so the same links work there and here.
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # Notebooks carry their outputs; the tests execute them.
nb_merge_streams = True

# The reference of the library.
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # The signature says them.
napoleon_use_rtype = False
napoleon_preprocess_types = False
add_module_names = False
toc_object_entries = False

html_theme = "furo"
html_title = "scBIG"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "sidebar_hide_name": False,
    "light_css_variables": {"color-brand-primary": "#0b5f94", "color-brand-content": "#0b5f94"},
    "dark_css_variables": {"color-brand-primary": "#7cc0ee", "color-brand-content": "#7cc0ee"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def setup(app):
    """Writes the generated pages, and joins Sphinx where they are read and where signatures are printed."""
    reference.write()
    app.connect("source-read", reference.follow_links)
    app.connect("autodoc-process-signature", reference.plain_signature)
    app.connect("autodoc-process-docstring", reference.no_substitutions)
    app.connect("autodoc-skip-member", reference.skip_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
