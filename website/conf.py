"""Sphinx configuration. The site loads nothing from elsewhere: it uses the reader's fonts, and search is built in."""

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
pygments_style = "default"  # its text has a contrast of at least 4.5, unlike that of "sphinx"
pygments_dark_style = "monokai"
html_theme_options = {"footer_icons": []}
html_show_search_summary = False  # it would fetch pages, which a browser does not allow from the disk
