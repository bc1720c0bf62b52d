"""How this process was started: alone, or by ``torchrun`` as one of several. Reads the environment only."""

from __future__ import annotations

import os

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
