"""What ends one rank ends all within seconds, with its reason, and is told once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_ranks import start_group
from helpers_runs import finished
from torch.distributed import HashStore

from afzal.errors import AfzalError, Terminated
from afzal.train import failures, ranks
from afzal.train.failures import Failure, failure_of, is_broken_exchange

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
ERRORS: dict[str, BaseException] = {
    "afzal": AfzalError("no row 7", where="a.jsonl:7", why="it is empty", remedy="mend it"),
    "disk": OSError(28, "No space left on device"),
    "bug": RuntimeError("no idea"),
    "SIGTERM": Terminated("SIGTERM"),
    "SIGINT": KeyboardInterrupt(),
}


def _ends(argument: tuple[Path, str, list[int]], environment: dict[str, str]) -> None:
    """Some ranks fail in the way of ``argument``; the others exchange messages, which can never arrive."""
    os.environ.update(environment)
    out, how, failing = argument
    own = int(environment["RANK"])
    start = time.monotonic()
    try:
        with ranks.joined(torch.device("cpu")):
            if how == "killed" and own in failing:
                os._exit(9)
            if own in failing:
                raise ERRORS[how]
            if how != "late":
                ranks.gather(None)
    except BaseException as error:
        facts = {"error": type(error).__name__, "words": str(error), "told": getattr(error, "told", False)}
        (out / f"{own}.json").write_text(json.dumps(facts | {"seconds": time.monotonic() - start}))
    os._exit(0)  # as a command does, which ends with its error


def ends(out: Path, how: str, failing: list[int], n: int = 2) -> dict[int, dict[str, Any]]:
    """How each rank ended."""
    for process in start_group(_ends, n, (out, how, failing)):
        finished(process, 60)
    return {rank: json.loads(path.read_text()) for rank in range(n) if (path := out / f"{rank}.json").exists()}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["afzal", "disk", "bug"])
def test_the_others_end_with_the_reason_of_the_rank_that_failed(tmp_path, how, rank):
    said = ends(tmp_path, how, [rank])
    own, other = said[rank], said[1 - rank]
    assert not own["told"]
    assert own["error"] == type(ERRORS[how]).__name__
    assert (other["error"], other["told"]) == ("ElsewhereError", True)
    parts = ["no row 7", "a.jsonl:7: ", "why: it is empty", "try: mend it"] if how == "afzal" else [str(ERRORS[how])]
    assert all(part in other["words"] for part in (f"rank {rank} failed: ", *parts))
    assert max(own["seconds"], other["seconds"]) < 10


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_a_signal_that_ends_one_rank_is_the_end_of_all(tmp_path, how):
    said = ends(tmp_path, how, [1], n=3)
    assert {facts["error"] for facts in said.values()} == {type(ERRORS[how]).__name__}
    assert len(said) == 3


def test_an_error_that_all_have_is_told_by_one(tmp_path):
    said = ends(tmp_path, "afzal", [0, 1, 2], n=3)
    assert [facts["error"] for facts in said.values()] == ["AfzalError"] * 3
    assert sorted(facts["told"] for facts in said.values()) == [False, True, True]


def test_a_rank_that_dies_without_a_word(tmp_path):
    said = ends(tmp_path, "killed", [1], n=3)
    assert sorted(said) == [0, 2]
    assert sorted(facts["told"] for facts in said.values()) == [False, True]
    (first,) = [facts for facts in said.values() if not facts["told"]]
    assert "another rank has ended" in first["words"]
    assert "--resume" in first["words"]


def _leaves(argument: Path, environment: dict[str, str]) -> None:
    """Rank 0 has finished when rank 1 fails."""
    os.environ.update(environment)
    try:
        with ranks.joined(torch.device("cpu")):
            if not ranks.leads():
                time.sleep(0.5)
                raise AfzalError("too late")
    except AfzalError as error:
        (argument / environment["RANK"]).write_text(str(error))


def test_a_rank_that_has_finished_fails_with_the_others(tmp_path):
    assert [finished(p, 60) for p in start_group(_leaves, 2, tmp_path)] == [0, 0]
    assert (tmp_path / "0").read_text() == "rank 1 failed: too late"
    assert (tmp_path / "1").read_text() == "too late"


def _computes(argument: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    failures.GRACE_SECONDS = 0.5
    with ranks.joined(torch.device("cpu")):
        if ranks.leads():
            time.sleep(60)
        raise Terminated("SIGTERM") if argument == "SIGTERM" else AfzalError("no")


@pytest.mark.parametrize(("how", "code"), [("error", 2), ("SIGTERM", 143)])
def test_a_rank_that_exchanges_nothing_is_ended_after_a_while(how, code):
    start = time.monotonic()
    assert finished(start_group(_computes, 2, how)[0], 60) == code
    assert time.monotonic() - start < 30


def _waits(argument: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, _terminate)
    if environment["RANK"] == "0":
        (argument / "here").touch()
        with ranks.joined(torch.device("cpu")):
            pass
    time.sleep(60)


def _terminate(*_: object) -> None:
    os._exit(143)


def test_a_signal_ends_a_rank_that_waits_for_the_others_to_start(tmp_path):
    """Outside Python no handler would run before they have come."""
    started = start_group(_waits, 2, tmp_path)
    while not (tmp_path / "here").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    started[0].terminate()
    assert finished(started[0], 20) == 143
    started[1].kill()


@pytest.mark.parametrize("how", ERRORS)
def test_a_failure_says_what_its_error_says(how):
    failure = failure_of(3, ERRORS[how])
    assert failure.rank == 3
    assert failure.exit_code == {"SIGTERM": 143, "SIGINT": 130}.get(how, 2)
    error = Failure(**json.loads(json.dumps({name: getattr(failure, name) for name in failure.__slots__}))).as_error()
    if how.startswith("SIG"):
        assert type(error) is type(ERRORS[how])
    else:
        assert str(ERRORS[how]).partition("\n")[0].removeprefix("a.jsonl:7: ") in str(error)


def test_a_broken_exchange_is_known_by_its_words():
    assert is_broken_exchange(RuntimeError(GLOO))
    assert not is_broken_exchange(RuntimeError("shapes differ"))
    assert not is_broken_exchange(AfzalError(GLOO))


@pytest.fixture
def boards(monkeypatch):
    """Two ranks' boards on one store, without processes, and the signals that they send."""
    signals: list[str] = []
    monkeypatch.setattr(failures, "_interrupt", signals.append)
    monkeypatch.setattr(failures, "_BREAK_SECONDS", 0.2)
    monkeypatch.setattr(failures, "_NOTICE_SECONDS", 0.5)
    store = HashStore()
    made = [failures.Board(store, rank, 2) for rank in range(2)]
    yield made, signals
    for board in made:
        board.close()


def test_the_first_failure_is_the_one_that_counts(boards):
    (zero, one), _ = boards
    one.end(AfzalError("first"))
    zero.end(AfzalError("second"))
    assert zero.look() == one.look() == Failure(1, "first")
    assert str(zero.cause(RuntimeError(GLOO))) == "rank 1 failed: first"


def test_a_rank_does_not_blame_itself(boards):
    (zero, one), _ = boards
    one.end(AfzalError("first"))
    error = one.cause(RuntimeError(GLOO))
    assert "another rank has ended" in str(error)
    stop = Terminated("SIGTERM")
    assert one.cause(stop) is stop
    assert isinstance(zero.cause(stop), failures.ElsewhereError), "a launcher's signal, after another has failed"


def test_a_rank_that_goes_on_after_a_failure_is_interrupted(boards):
    (zero, one), signals = boards
    one.end(AfzalError("first"))
    one.close()
    deadline = time.monotonic() + 20
    while not signals and time.monotonic() < deadline:
        time.sleep(0.05)
    assert signals == ["SIGTERM"]
    zero.close()
