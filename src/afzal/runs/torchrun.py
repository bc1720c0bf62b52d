"""How this process was launched: alone, or by ``torchrun`` as one of several. Reads only environment variables."""

from __future__ import annotations

import os

from afzal.errors import AfzalError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """The number of processes launched together; 1 without ``torchrun``."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _VARIABLES) else 1


def global_rank() -> int:
    """The rank of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def restarts() -> int:
    """How often ``torchrun`` has restarted the processes because one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def reuses_store() -> bool:
    """Whether the store through which ranks find each other survives a restart.

    ``torchrun`` keeps it, unless ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` asks for a new one at every start. Only with
    a new one can a machine rejoin after it was down: its ``torchrun`` counts restarts from 0, the others do not.
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def run_id() -> str:
    """The name of the launch (``--rdzv-id``), which stays the same when a machine rejoins or a job is requeued; empty
    if there is none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if name == "none" else name


def require_one_process(what: str) -> None:
    """Require that this is the only process.

    Raises:
        AfzalError: it is one of several.
    """
    if world_size() > 1:
        raise AfzalError(
            f"{what} cannot run on {world_size()} ranks",
            why="only training and rounds are split across ranks; each would do all the work and write the same files",
            remedy="run it without torchrun; afzal train and afzal iterate can run under it: torchrun -m afzal train",
        )
