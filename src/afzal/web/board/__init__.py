"""``afzal board``: the runs below a folder in the browser, with live curves and links to every page."""
