"""What Sphinx is told. Nothing is loaded from elsewhere: fonts are the reader's own, the search is part of the site."""

project = "Afzal"
html_title = "Afzal"
extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_domain_indices = False
html_use_index = False
pygments_style = "default"  # its letters have a contrast of 4.5 at least, those of "sphinx" have not
pygments_dark_style = "monokai"
html_theme_options = {"footer_icons": []}
html_show_search_summary = False  # it would fetch pages, which a browser does not allow from the disk
