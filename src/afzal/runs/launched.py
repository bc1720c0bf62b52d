"""How this process was started: alone, or by ``torchrun`` as one of several. Reads the environment only."""

from __future__ import annotations

import os

from afzal.errors import AfzalError

_GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def processes() -> int:
    """How many processes were started together; 1 without ``torchrun``."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _GIVEN) else 1


def number() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def restarts() -> int:
    """How often ``torchrun`` has started them again, since one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def keeps_store() -> bool:
    """Whether the store in which ranks find each other outlives a restart.

    ``torchrun`` keeps it, unless ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` asks for a new one at every start. Only then
    can a machine that was down come back: its ``torchrun`` counts restarts from 0, and the others do not.
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def launch() -> str:
    """The name of the launch (``--rdzv-id``), which a machine that comes back and a job that is queued again have in
    common with the first start; empty where there is none."""
    found = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if found == "none" else found


def alone(what: str) -> None:
    """Make sure that this is the only process.

    Raises:
        AfzalError: it is one of several.
    """
    if processes() > 1:
        raise AfzalError(
            f"{what} cannot run on {processes()} ranks",
            why="only trainings and rounds are divided over ranks; each would do all of this, and write the same files",
            remedy="run it without torchrun; afzal train and afzal iterate can run under it: torchrun -m afzal train",
        )
