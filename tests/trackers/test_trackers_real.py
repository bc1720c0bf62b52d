"""The real packages, offline: they record exactly the contents of ``metrics.jsonl``, also for a resumed run."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import interrupt_after, settings

from afzal import config, recipes
from afzal.runs import Run
from afzal.trackers import NOTES, TRACKERS, Line

pytestmark = pytest.mark.slow
LOG = Run.log
Points = dict[str, list[tuple[int, float]]]
"""By metric, its steps and values in the order of the steps."""


def of_file(out: Path) -> Points:
    points: Points = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        told = Line.of(json.loads(line))
        for name, value in told.metrics.items():
            points.setdefault(name, []).append((told.step, value))
    return points


def of_tensorboard(out: Path, known: str) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(known, size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def of_mlflow(out: Path, known: str) -> Points:
    import mlflow

    client = mlflow.MlflowClient()
    run = client.get_run(known)
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "8"
    history = {name: client.get_metric_history(known, name) for name in run.data.metrics}
    return {name: sorted((m.step, m.value) for m in metrics) for name, metrics in history.items()}


def of_trackio(out: Path, known: str) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    points: Points = {}
    for row in SQLiteStorage.get_logs("afzal", known):
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                points.setdefault(name, []).append((row["step"], value))
    return points


def of_wandb(out: Path, known: str) -> Points:
    points: Points = {}
    for path in sorted(Path.cwd().glob(f"wandb/offline-run-*/run-{known}.wandb")):
        for row in wandb_history(path):
            step = row.pop("train/global_step")
            for name, value in row.items():
                if not name.startswith("_"):
                    points.setdefault(name, []).append((step, value))
    return points


def wandb_history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of history in an offline file: protocol buffers in the log format of LevelDB, behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as proto

    raw, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, part = struct.unpack("<IHB", raw[at : at + 7])
        record += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # a complete record, or its last part
            read = proto.Record()
            read.ParseFromString(record)
            record = b""
            if read.WhichOneof("record_type") == "history":
                yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in read.history.item}


READERS: dict[str, Callable[[Path, str], Points]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A separate working folder and stores for the test, and no network access."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_", "TENSORBOARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    if find_spec("trackio"):  # reads its variable when it is imported
        from trackio import sqlite_storage, utils

        for module in (sqlite_storage, utils):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    yield
    if find_spec("wandb"):  # remembers the working folder
        import wandb

        wandb.teardown()


def test_every_tracker_is_read_back():
    assert set(READERS) == set(TRACKERS)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("method", ["dpo", "rloo"])
def test_a_tracker_has_what_the_metrics_have_also_of_a_resumed_run(
    name: str, method: str, offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip(name, reason=f'pip install "afzal[{name}]"')
    given = settings(tmp_path, tmp_path / "run", report_to=name, max_steps=8, save_every_steps=2, eval_every_steps=3)
    if method == "rloo":
        (tmp_path / "rewards.py").write_text("def short(prompt, answer):\n    return -float(len(answer))\n")
        given |= {"reward": f"{tmp_path}/rewards.py:short", "n": 2, "minibatches": 2}
    made = config.make(method, **given)
    interrupt_after(monkeypatch, 7, "lr")
    with pytest.raises(KeyboardInterrupt):
        recipes.train(made)
    first = json.loads((tmp_path / "run" / NOTES).read_text())[name]
    assert first["steps"]["train"] == 6  # the seventh line was written, and the run ended before it was sent
    monkeypatch.setattr("afzal.runs.Run.log", LOG)
    out = recipes.train(made, resume=True)
    known = json.loads((out / NOTES).read_text())[name]
    assert known["id"] == first["id"]
    wanted, tracked = of_file(out), READERS[name](out, known["id"])
    assert {key for key in wanted if key.startswith(("train/loss", "eval/"))}
    assert tracked.keys() == wanted.keys()
    timed = {key for key in wanted if key.endswith("/seconds")}  # of a step computed again, the first time stays
    for key, points in wanted.items():
        assert [step for step, _ in tracked[key]] == [step for step, _ in points], key
        if key not in timed:
            about = [value for _, value in points]
            assert [value for _, value in tracked[key]] == pytest.approx(about, rel=1e-6, nan_ok=True), key
