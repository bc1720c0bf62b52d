"""Calls of rank 0 to the other ranks: every rank does a part, a failure on one fails on all, and all hear the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_ranks import start_group
from helpers_runs import finished

from afzal.errors import AfzalError
from afzal.train import ranks
from afzal.train.coordinator import Coordinator


def squares(own: list[int], numbers: list[int]) -> list[int]:
    own.append(len(numbers))
    return [numbers[k] ** 2 for k in ranks.portion(len(numbers))]


def failing(own: list[int], rank: int, kind: str) -> None:
    if ranks.rank() == rank:
        raise AfzalError("no more", why="it is over", remedy="stop") if kind == "afzal" else RuntimeError("no memory")


def meeting(own: list[int], word: str) -> list[str]:
    return ranks.gather(f"{word} of {ranks.rank()}")


WORKS = {"squares": squares, "failing": failing, "meeting": meeting}


def test_in_one_process_calls_are_calls_of_functions():
    coordinator, own = Coordinator(WORKS), []
    assert coordinator.run_parts("squares", own, numbers=[1, 2, 3]) == [[1, 4, 9]]
    assert coordinator.run_collective("meeting", own, word="word") == ["word of 0"]
    with pytest.raises(RuntimeError, match="no memory"):
        coordinator.run_parts("failing", own, rank=0, kind="other")
    coordinator.stop()
    assert own == [3]


def _three(out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with ranks.joined(torch.device("cpu")):
        coordinator, own = Coordinator(WORKS), []
        if ranks.leads():
            said: list[Any] = [coordinator.run_parts("squares", own, numbers=list(range(7)))]
            said.append(coordinator.run_collective("meeting", own, word="word"))
            said.append(coordinator.run_parts("squares", own, numbers=[5]))
            coordinator.stop()
            (out / "said").write_text(repr(said))
        else:
            coordinator.serve(own)
        (out / f"own-{ranks.rank()}").write_text(repr(own))


def test_every_rank_does_its_part_until_the_end(tmp_path):
    assert [finished(p) for p in start_group(_three, 3, tmp_path)] == [0, 0, 0]
    expected = [[[0, 1], [4, 9], [16, 25, 36]], ["word of 0", "word of 1", "word of 2"], [[], [], [25]]]
    assert (tmp_path / "said").read_text() == repr(expected)
    assert [(tmp_path / f"own-{rank}").read_text() for rank in range(3)] == ["[7, 1]"] * 3


def _fails(argument: tuple[Path, int, str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    out, rank, kind = argument
    with ranks.joined(torch.device("cpu")):
        coordinator = Coordinator(WORKS)
        try:
            if ranks.leads():
                try:
                    coordinator.run_parts("failing", [], rank=rank, kind=kind)
                finally:
                    coordinator.stop()  # sends nothing, since no rank listens any more
            else:
                coordinator.serve([])
        except (AfzalError, RuntimeError) as error:
            (out / f"{ranks.rank()}").write_text(f"{type(error).__name__} {error}")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["afzal", "other"])
def test_what_fails_on_one_rank_fails_on_all(tmp_path, rank, kind):
    assert [finished(p) for p in start_group(_fails, 2, (tmp_path, rank, kind))] == [0, 0]
    said = [(tmp_path / f"{r}").read_text() for r in range(2)]
    own = "AfzalError no more\n  why: it is over\n  try: stop" if kind == "afzal" else "RuntimeError no memory"
    what = "no more\n  why: it is over\n  try: stop" if kind == "afzal" else "RuntimeError: no memory"
    assert said[rank] == own
    assert said[1 - rank] == f"ElsewhereError rank {rank} failed: {what}"


def _fails_in_a_group(argument: tuple[Path, str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    out, kind = argument
    try:
        with ranks.joined(torch.device("cpu"), tensor_parallel=2):
            coordinator = Coordinator(WORKS)
            if ranks.leads():
                coordinator.run_parts("failing", [], rank=1, kind=kind)
            else:
                coordinator.serve([])
    except (AfzalError, RuntimeError) as error:
        (out / f"{ranks.global_rank()}").write_text(f"{type(error).__name__} {error}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["afzal", "other"])
def test_a_rank_of_a_group_that_runs_out_of_memory_ends_itself_and_the_wait_of_the_others(tmp_path, kind):
    """Its group could wait for its tensors, so only a fault of the data is exchanged; the other is on the board."""
    assert [finished(p) for p in start_group(_fails_in_a_group, 2, (tmp_path, kind))] == [0, 0]
    said = [(tmp_path / f"{r}").read_text() for r in range(2)]
    assert said[1].startswith("AfzalError no more" if kind == "afzal" else "RuntimeError no memory")
    what = "no more" if kind == "afzal" else "RuntimeError: no memory"
    assert said[0].startswith(f"ElsewhereError rank 1 failed: {what}")
