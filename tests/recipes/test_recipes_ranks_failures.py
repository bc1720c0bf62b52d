"""Faults of one of two ranks, and signals before the first update: all end soon with one error, and nothing is lost."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_ranks import run_ranks, start_group
from helpers_runs import _run, command_line, fingerprint, finished
from test_recipes_ranks import given, metrics, rewarded

SOON = 30  # seconds on a busy machine; a wait for another rank would take 30 minutes
QUIET: dict[str, Any] = {"max_steps": 3, "save_every_steps": 1, "keep_checkpoints": 5, "sample_prompts": 0}


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _no_data(folder: Path) -> None:
    """This rank is on a machine without the data file."""
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")


def _broken_header(folder: Path) -> None:
    """This rank has a copy of the model whose weight file does not begin with a header."""
    shutil.copytree(folder / "model", folder / "elsewhere" / "model")
    weights = folder / "elsewhere" / "model" / "model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])
    os.chdir(folder / "elsewhere")


def _full_disk(folder: Path) -> None:
    """The disk is full when this rank writes its part of the second checkpoint."""
    checkpoint = _module("afzal.train.checkpoint")
    write = checkpoint.write_tensors

    def written(path: Path, tensors: Any) -> Any:
        if "00000002" in str(path.parent) or (folder / "out" / "checkpoints" / "step-00000001").exists():
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        return write(path, tensors)

    checkpoint.write_tensors = written


def _slow(name: str, function: str) -> Callable[[Path], None]:
    """This rank needs a minute for a function, and says when it has begun."""

    def slow(folder: Path) -> None:
        module = _module(name)
        work = getattr(module, function)

        def delayed(*given: Any, **named: Any) -> Any:
            (folder / f"slow-{os.environ['RANK']}").touch()
            for _ in range(600):
                time.sleep(0.1)
            return work(*given, **named)

        setattr(module, function, delayed)

    return slow


def _slow_rollout(folder: Path) -> None:
    """This rank needs a minute to draw the answers of the third rollout."""
    rollout = _module("afzal.recipes.rollout")
    write = rollout.Writer.write

    def written(self: Any, iteration: int, kl_coef: float) -> Any:
        if iteration == 2:
            _slow("afzal.recipes.rollout", "sample")(folder)
        return write(self, iteration, kl_coef)

    rollout.Writer.write = written


FAULTS: dict[str, Callable[[Path], None]] = {
    "data": _no_data,
    "header": _broken_header,
    "disk": _full_disk,
    "none": lambda folder: None,
    "reading": _slow("afzal.recipes.train", "prepare"),
    "building": _slow("afzal.recipes.train", "set_up"),
    "checking": _slow("afzal.recipes.train", "check_first_loss"),
    "sampling": _slow_rollout,
}


def _rank(argument: tuple[Path, list[str], str, list[int]], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    folder, line, fault, faulty = argument
    log = os.open(folder / f"said-{environment['RANK']}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 2)
    os.chdir(folder)
    if int(environment["RANK"]) in faulty:
        FAULTS[fault](folder)
    _run(line)


def start(folder: Path, line: list[str], fault: str, *faulty: int) -> list[Any]:
    """Two ranks, some of which have a fault."""
    return start_group(_rank, 2, (folder, line, fault, list(faulty)))


def ends(folder: Path, line: list[str], fault: str, rank: int) -> list[int]:
    """The exit codes of two ranks, one of which has a fault; both end soon."""
    begun = time.monotonic()
    codes = [finished(process, 120) for process in start(folder, line, fault, rank)]
    assert time.monotonic() - begun < SOON
    return codes


def errors(folder: Path) -> list[list[str]]:
    """The errors of every rank, each with the lines below it."""
    said = []
    for rank in range(2):
        lines = (folder / f"said-{rank}").read_text().splitlines()
        assert not any(line.startswith(("Traceback", "frame #")) or "bug in Afzal" in line for line in lines)
        starts = [k for k, line in enumerate(lines) if line.startswith("error: ")]
        said.append(["\n".join(lines[k:]) for k in starts])
    return said


def only_error(folder: Path, rank: int) -> str:
    """The only error, which this rank has printed."""
    said = errors(folder)
    assert [len(of_rank) for of_rank in said] == [int(rank == 0), int(rank == 1)], said
    return said[rank][0]


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "run.json").read_text())


@pytest.mark.parametrize("rank", [0, 1])
def test_data_that_one_rank_does_not_have(tmp_path, rank):
    values = given(tmp_path, "out", "dpo", **QUIET) | {"data": "pairs.jsonl"}
    assert ends(tmp_path, command_line("dpo", values), "data", rank) == [2, 2]
    assert "pairs.jsonl" in only_error(tmp_path, rank)
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_that_one_rank_cannot_read(tmp_path, rank):
    values = given(tmp_path, "out", "dpo", **QUIET) | {"model": "model"}
    assert ends(tmp_path, command_line("dpo", values), "header", rank) == [2, 2]
    assert "model.safetensors" in only_error(tmp_path, rank)
    assert not list((tmp_path / "out").glob("*.safetensors"))


# the reward of a prompt that only one rank answers: a fault of a row in one rank's share
ONE_ROW = """
import os
def odd(prompt, answer):
    if os.environ["RANK"] == "{rank}":
        raise ValueError("no reward for this")
    return len(answer) / 8
"""


@pytest.mark.parametrize("method", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_reward_that_fails_on_one_rank(tmp_path, method, rank):
    values = rewarded(tmp_path, "out", method, iterations=2)
    (tmp_path / "rewards.py").write_text(ONE_ROW.format(rank=rank))
    assert ends(tmp_path, command_line(method, values), "none", rank) == [2, 2]
    said = only_error(tmp_path, rank)
    for part in ("rewards.py:odd failed: ValueError: no reward for this", "prompt 'Q", "try: it must return a number"):
        assert part in said
    assert facts(tmp_path)["status"] == "failed"
    assert "no reward for this" in facts(tmp_path)["stop_reason"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_rank_leaves_the_checkpoint_before(tmp_path, rank):
    whole = given(tmp_path, "whole", "dpo", **QUIET)
    line = command_line("dpo", given(tmp_path, "out", "dpo", **QUIET))
    assert run_ranks(command_line("dpo", whole), 2) == [0, 0]
    assert ends(tmp_path, line, "disk", rank) == [2, 2]
    said = only_error(tmp_path, rank)
    assert "cannot write" in said
    assert "the disk is full" in said
    assert "try: free some space" in said
    names = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert names == ["step-00000001"]
    assert facts(tmp_path)["status"] == "failed"
    assert run_ranks([*line, "--resume"], 2) == [0, 0]
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "whole")


def stopped_while(folder: Path, line: list[str], fault: str, slow: list[int], signalled: list[int], name: str) -> str:
    """A signal to some ranks, while some of them read, build or sample, ends both soon; returns what they printed."""
    started = start(folder, line, fault, *slow)
    while not all((folder / f"slow-{rank}").exists() for rank in slow):
        assert all(process.is_alive() for process in started), errors(folder)
        time.sleep(0.05)
    time.sleep(0.5)
    begun = time.monotonic()
    number = {"SIGTERM": 15, "SIGINT": 2, "SIGHUP": 1}[name]
    for rank in signalled:
        os.kill(started[rank].pid, number)
    assert [finished(process, 120) for process in started] == [128 + number] * 2
    assert time.monotonic() - begun < SOON
    said = "".join((folder / f"said-{rank}").read_text() for rank in range(2))
    assert "error: " not in said
    return said


@pytest.mark.parametrize(
    ("fault", "slow", "signalled", "name"),
    [
        ("reading", [0], [0, 1], "SIGTERM"),
        ("building", [0, 1], [0, 1], "SIGTERM"),
        pytest.param("building", [0, 1], [1], "SIGTERM", marks=pytest.mark.slow),
        pytest.param("building", [1], [0, 1], "SIGINT", marks=pytest.mark.slow),
        pytest.param("building", [0], [0], "SIGHUP", marks=pytest.mark.slow),
        pytest.param("checking", [0], [0, 1], "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_before_the_first_update_ends_all_ranks_at_once(tmp_path, fault, slow, signalled, name):
    line = command_line("dpo", given(tmp_path, "out", "dpo", **QUIET))
    assert stopped_while(tmp_path, line, fault, slow, signalled, name).count("interrupted by ") == 1
    if fault != "reading":
        assert (facts(tmp_path)["status"], facts(tmp_path)["stop_reason"]) == ("stopped", name)


@pytest.mark.slow
def test_a_resumed_run_stopped_before_its_next_update_loses_nothing(tmp_path):
    whole, line = (command_line("dpo", given(tmp_path, out, "dpo", **QUIET)) for out in ("whole", "out"))
    assert run_ranks(whole, 2) == [0, 0]
    assert ends(tmp_path, line, "disk", 1) == [2, 2]
    stopped_while(tmp_path, [*line, "--resume"], "building", [0, 1], [1], "SIGTERM")
    assert [m["step"] for m in metrics(tmp_path / "out") if m["kind"] == "train"][:1] == [1]
    assert run_ranks([*line, "--resume"], 2) == [0, 0]
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "signalled", "name"), [([0, 1], [0, 1], "SIGTERM"), ([1], [1], "SIGINT")])
def test_a_signal_ends_a_rollout_and_the_resumed_run_draws_it_again(tmp_path, slow, signalled, name):
    short = {"iterations": 4, "ppo_epochs": 2, "minibatches": 1, "eval_every_steps": 1000}
    whole, line = (command_line("ppo", rewarded(tmp_path, out, "ppo", **short)) for out in ("whole", "out"))
    assert run_ranks(whole, 2) == [0, 0]
    said = stopped_while(tmp_path, line, "sampling", slow, signalled, name)
    assert f"stopped by {name} after step 4; everything is saved" in said
    assert facts(tmp_path)["status"] == "stopped"
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000004"]
    assert run_ranks([*line, "--resume"], 2) == [0, 0]
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "whole")


ELSEWHERE = """
import os, sys
if os.environ["RANK"] == "{rank}":
    os.chdir("elsewhere")
from afzal.cli import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("own_store", ["0", "1"])
@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_a_rank_that_cannot_start_has_the_only_word(tmp_path, rank, own_store):
    """Its file is missing before it has joined the others, which may still import torch then."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "start.py").write_text(ELSEWHERE.format(rank=rank))
    line = command_line("dpo", given(tmp_path, "out", "dpo", **QUIET) | {"data": "pairs.jsonl"})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "start.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": own_store}
    done = subprocess.run(
        [*launcher, *line], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    said = [text for text in done.stderr.splitlines() if text.startswith(("error: ", "interrupted by "))]
    assert said == [f"error: {'rank 1: ' if rank else ''}no such file or folder: pairs.jsonl"]
    assert "bug in Afzal" not in done.stderr
