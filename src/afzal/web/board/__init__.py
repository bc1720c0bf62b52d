"""``afzal board``: the runs in a folder, in the browser, with live curves and links to all pages."""
