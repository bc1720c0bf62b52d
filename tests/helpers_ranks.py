"""Runs of the command line by several ranks, in processes forked from a server, as ``torchrun`` would start them."""

from __future__ import annotations

import os
import socket
from typing import Any

from helpers_runs import _CONTEXT, _run, finished


def _as_rank(arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    _run(arguments)


def start_ranks(arguments: list[str], n: int, **environment: str) -> list[Any]:
    """``n`` processes that run the same command line as ranks of one group."""
    return start_group(_as_rank, n, arguments, **environment)


def start_group(target: Any, n: int, argument: Any, **environment: str) -> list[Any]:
    """``n`` processes that call ``target(argument, environment)`` as ranks of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(n):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        given = {name: str(value) for name, value in own.items()} | environment
        process = _CONTEXT.Process(target=target, args=(argument, given), daemon=True)
        process.start()
        started.append(process)
    return started


def run_ranks(arguments: list[str], n: int, **environment: str) -> list[int]:
    """Exit codes of the ranks."""
    started = start_ranks(arguments, n, **environment)
    return [finished(process) for process in started]
