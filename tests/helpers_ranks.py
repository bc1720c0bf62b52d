"""Runs of the command line by several ranks, in processes forked from a server, as ``torchrun`` would start them."""

from __future__ import annotations

import json
import math
import os
import socket
import tempfile
from pathlib import Path
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


def run_in_shards(arguments: list[str], n: int, *folders: Path) -> tuple[list[int], list[dict[str, int]]]:
    """The exit codes of ranks, and how many numbers of large weights each has read in parts, by folder.

    A rank fails if it loads one of the folders unsharded; if none is named, any folder.
    """
    with tempfile.TemporaryDirectory() as counts:
        given = (arguments, [str(folder) for folder in folders], counts)
        codes = [finished(process) for process in start_group(_in_shards, n, given)]
        read = [Path(counts) / f"{rank}.json" for rank in range(n)]
        return codes, [json.loads(path.read_text()) for path in read]


def _in_shards(given: tuple[list[str], list[str], str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    import afzal.model.load
    import afzal.model.reward
    from afzal.folders import lazy_weights
    from afzal.train import shard

    arguments, folders, counts = given
    read: dict[str, int] = {}

    def refuses(load: Any) -> Any:
        def loaded(folder: str, **settings: Any) -> Any:
            if not folders or folder in folders:
                raise AssertionError(f"{folder} is loaded whole")
            return load(folder, **settings)

        return loaded

    def counted(places: Any) -> None:
        for place, _, into in places.values():
            folder = str(place[0].file.parent)
            read[folder] = read.get(folder, 0) + into.numel()
        fill(places)

    fill, lazy_weights.fill, shard.fill = lazy_weights.fill, counted, counted
    afzal.model.load.load_causal_model = refuses(afzal.model.load.load_causal_model)
    afzal.model.reward.load_classifier = refuses(afzal.model.reward.load_classifier)
    try:
        _run(arguments)
    finally:
        (Path(counts) / f"{environment['RANK']}.json").write_text(json.dumps(read))


def assert_read_once(folder: Path, read: list[dict[str, int]], of_rank: float = 0.6) -> None:
    """Together the ranks have read each number of the large weights of a folder once, and none more than its share."""
    from safetensors import safe_open

    sizes = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    large = sum(size for size in sizes if size >= 1024)
    own = [counts.get(str(folder), 0) for counts in read]
    assert sum(own) == large
    assert max(own) <= of_rank * large
