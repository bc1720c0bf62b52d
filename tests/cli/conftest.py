"""Command lines are read here with names of models and data that are nowhere."""

import pytest


@pytest.fixture(autouse=True)
def nothing_is_looked_up(request, monkeypatch):
    """What a command does first, with the paths that it is given, has tests of its own: test_cli_start.py."""
    if "readme" not in request.module.__name__:
        monkeypatch.setattr("afzal.cli.start.begin", lambda settings, what: None)
