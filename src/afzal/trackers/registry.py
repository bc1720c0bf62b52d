"""The supported trackers. Each is a package, an extra of Afzal, and a module ``with_NAME`` of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec

from afzal.errors import AfzalError

from .tracker import RunInfo, Tracker

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def opener(name: str) -> Callable[[RunInfo], Tracker]:
    """The function that opens a run in the named tracker; it may raise anything, and may take long."""
    return import_module(f"{__package__}.with_{name}").open_run


def refuse_unready(names: Iterable[str]) -> None:
    """Refuse trackers that cannot work, before a run starts: the package is missing, or there is no account.

    Raises:
        AfzalError: with the remedy.
    """
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # no origin: a folder with that name, such as ./wandb
            raise AfzalError(
                f"report_to {name} needs the package {name}", remedy=f'pip install "afzal[{name}]", or leave it out'
            )
        if check := getattr(import_module(f"{__package__}.with_{name}"), "refuse_unready", None):
            check()
