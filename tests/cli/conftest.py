"""Command lines here name models and data that do not exist."""

import pytest


@pytest.fixture(autouse=True)
def nothing_is_looked_up(request, monkeypatch):
    """Skip the check of paths that a command makes first; test_cli_startup.py tests it."""
    if "readme" not in request.module.__name__:
        monkeypatch.setattr("afzal.cli.startup.begin", lambda settings, what: None)
