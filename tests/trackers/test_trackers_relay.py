"""A relay passes every line on, and no tracker, however broken, changes or ends a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers_runs import fingerprint, one_thread, settings

from afzal import config, recipes
from afzal.compare import trainings
from afzal.config import IterateConfig, Setting, build
from afzal.errors import AfzalError
from afzal.iterate.stages import training
from afzal.recipes.tracking import name_of
from afzal.trackers import TRACKERS, Line, RunInfo, open_relay, registry, relay
from afzal.trackers.tracker import metric_name
from afzal.train.callbacks import Callbacks


class Scripted:
    """A tracker that records its calls; ``trouble`` is called before each step, and may raise or hang."""

    kept: ClassVar[list[Scripted]] = []

    def __init__(self, about: RunInfo, trouble: Callable[[str], None] = lambda doing: None) -> None:
        trouble("open")
        self.about, self.trouble, self.id, self.where = about, trouble, about.id or "r1", "here"
        self.lines: list[Line] = []
        self.ended: bool | None = None
        Scripted.kept.append(self)

    def log(self, lines: Sequence[Line]) -> None:
        self.trouble("log")
        self.lines.extend(lines)

    def finish(self, complete: bool) -> None:
        self.trouble("finish")
        self.ended = complete


def failing(at: str) -> Callable[[str], None]:
    def trouble(doing: str) -> None:
        if doing == at:
            raise ConnectionError("the server is gone")

    return trouble


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    """Install scripted trackers under real names; gives a function that says how each misbehaves."""
    Scripted.kept = []
    troubles: dict[str, Callable[[str], None]] = {}
    monkeypatch.setattr(
        relay, "opener", lambda name: lambda about: Scripted(about, troubles.get(name, lambda doing: None))
    )
    monkeypatch.setattr(relay, "_GATHER_SECONDS", 0.0)
    monkeypatch.setattr(recipes.train.__globals__["trackers"], "refuse_unready", lambda names: None)
    return troubles


def record(step: int, kind: str = "train", **numbers: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "loss": 1.0 / (step + 1), **numbers}


RECORDS = [record(0, "eval"), record(1), record(2, note="words", fine=True), record(2, "eval")]


def relay_of(folder: Path, *names: str, say: Callable[[str], None] = lambda line: None, before: Any = ()):
    return open_relay(names or ("wandb",), RunInfo("run", folder, {}), before, say)


def test_every_line_arrives_once_in_order_and_under_its_kind(scripted: Any, tmp_path: Path):
    said: list[str] = []
    with relay_of(tmp_path, say=said.append) as it:
        for line in RECORDS:
            it.receive(line)
        it.complete = True
    (kept,) = Scripted.kept
    assert [(line.kind, line.step) for line in kept.lines] == [("eval", 0), ("train", 1), ("train", 2), ("eval", 2)]
    assert kept.lines[2].metrics == {"train/loss": 1 / 3}  # texts and booleans are no metrics
    assert kept.ended is True
    assert said == ["wandb: here"]


def test_the_kind_stands_before_the_name_and_not_twice():
    assert metric_name("rollout", "rollout/length") == "rollout/length"
    assert metric_name("rollout", "objective/kl") == "rollout/objective/kl"
    assert metric_name("eval", "rewards/chosen") == "eval/rewards/chosen"


@pytest.mark.parametrize("at", ["open", "log", "finish"])
def test_a_tracker_that_fails_warns_once_and_the_others_hear_everything(scripted: Any, tmp_path: Path, at: str):
    scripted["mlflow"] = failing(at)
    said: list[str] = []
    with relay_of(tmp_path, "mlflow", "wandb", say=said.append) as it:
        for step in range(1, 20):
            it.receive(record(step))
    warnings = [line for line in said if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "mlflow" in warnings[0]
    assert "ConnectionError: the server is gone" in warnings[0]
    sound = [kept for kept in Scripted.kept if kept.trouble is not scripted["mlflow"]]
    assert [line.step for line in sound[0].lines] == list(range(1, 20))


def test_a_tracker_that_hangs_is_left_behind(scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relay.Relay.close, "__defaults__", (0.05,))
    free = threading.Event()
    scripted["trackio"] = lambda doing: (free.wait(60), None)[1]
    said: list[str] = []
    with relay_of(tmp_path, "trackio", say=said.append) as it:
        for step in range(1, 1000):
            it.receive(record(step))
    assert [line for line in said if "trackio did not answer" in line]
    assert not Scripted.kept  # it hung while opening
    free.set()


def test_only_the_thread_of_the_run_speaks(scripted: Any, tmp_path: Path):
    scripted["mlflow"] = failing("log")
    speakers = set()
    with relay_of(tmp_path, *TRACKERS, say=lambda line: speakers.add(threading.current_thread())) as it:
        for line in RECORDS:
            it.receive(line)
    assert speakers == {threading.main_thread()}


def test_a_run_that_is_continued_sends_nothing_twice_and_a_new_tracker_gets_all(scripted: Any, tmp_path: Path):
    with relay_of(tmp_path) as it:
        for step in range(1, 7):
            it.receive(record(step))
        it.receive(record(4, "eval"))
    # the checkpoint was at step 4, and the evaluation after it is repeated
    before = [record(step) for step in range(1, 5)]
    with relay_of(tmp_path, "wandb", "mlflow", before=before) as it:
        it.receive(record(4, "eval"))
        for step in range(5, 9):
            it.receive(record(step))
        it.receive(record(8, "eval"))
    by_id = {(kept.about.id, len(kept.lines)): kept for kept in Scripted.kept[1:]}
    continued, fresh = by_id["r1", 3], by_id[None, 10]
    assert [(line.kind, line.step) for line in continued.lines] == [("train", 7), ("train", 8), ("eval", 8)]
    assert [line.step for line in fresh.lines if line.kind == "train"] == list(range(1, 9))
    assert json.loads((tmp_path / relay.NOTES).read_text())["wandb"] == {"id": "r1", "steps": {"train": 8, "eval": 8}}


QUICK: dict[str, Any] = {"max_steps": 6, "save_every_steps": 2, "sample_prompts": 0}


def test_a_broken_tracker_changes_no_weight_and_a_resumed_run_may_have_another(
    scripted: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    scripted["wandb"] = failing("log")

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise RuntimeError("enough")

    plain = settings(tmp_path, tmp_path / "plain", **QUICK)
    told = settings(tmp_path, tmp_path / "told", **QUICK, report_to=["wandb", "mlflow"])
    with one_thread():
        recipes.train(config.make("dpo", **plain))
        with pytest.raises(AfzalError, match="enough"):
            recipes.train(config.make("dpo", **told), callbacks=Callbacks(on_step=(stop,)))
        assert capfd.readouterr().err.count("wandb records no more") == 1
        recipes.train(config.make("dpo", **(told | {"report_to": "mlflow,trackio"})), resume=True)
    assert fingerprint(tmp_path / "told") == fingerprint(tmp_path / "plain")
    lines = [json.loads(line) for line in (tmp_path / "told" / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["kind"], line["step"]) for line in lines]
    heard: dict[Any, list[tuple[str, int]]] = {}
    for kept in (kept for kept in Scripted.kept if kept.trouble is not scripted["wandb"]):
        heard.setdefault(kept.about.id, []).extend((line.kind, line.step) for line in kept.lines)
    first, second = heard[None], heard["r1"]  # mlflow and then trackio opened it anew, mlflow continued it
    assert sorted(first + second) == sorted(steps + steps)
    assert [kept.ended for kept in Scripted.kept if kept.about.id == "r1"] == [True]


def test_a_finished_run_is_sent_to_a_tracker_that_lacks_it(scripted: Any, tmp_path: Path):
    given = settings(tmp_path, tmp_path / "run", **(QUICK | {"max_steps": 2}))
    recipes.train(config.make("dpo", **given))
    recipes.train(config.make("dpo", **given, report_to="mlflow"), resume=True)
    (kept,) = Scripted.kept
    assert [line.step for line in kept.lines if line.kind == "train"] == [1, 2]


@pytest.mark.parametrize("origin", [None, "namespace"])
def test_a_missing_package_is_refused_before_the_run(
    origin: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    class Namespace:  # what Python imports from a folder ./wandb
        origin = None

    monkeypatch.setattr(registry, "find_spec", lambda name: Namespace if origin else None)
    with pytest.raises(AfzalError) as caught:
        recipes.train(config.make("dpo", **settings(tmp_path, tmp_path / "run", report_to="wandb")))
    assert 'pip install "afzal[wandb]"' in caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_names_are_checked_with_the_settings():
    made = config.make("dpo", model="m", data="d", report_to="wandb,tensorboard,wandb")
    assert made.report_to == ["wandb", "tensorboard"]
    assert config.make("dpo", model="m", data="d", report_to="none").report_to is None
    with pytest.raises(AfzalError, match="did you mean wandb"):
        config.make("dpo", model="m", data="d", report_to="wandbb")


def test_trackers_are_extras_and_modules_of_their_names():
    import tomllib

    root = Path(__file__).resolve().parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in TRACKERS:
        assert [need.partition(">")[0] for need in extras[name]] == [name]
        assert callable(registry.opener(name))


def test_comparisons_do_not_take_a_run_for_another_when_somebody_else_hears_of_it():
    made = [config.make("dpo", model="m", data="d", report_to=names) for names in (None, "wandb")]
    assert trainings._recorded_settings(made[0]) == trainings._recorded_settings(made[1])


def test_each_round_is_a_run_of_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = {"model": "M", "prompts": "P", "reward": "m:f", "out": "O", "report_to": "mlflow"}
    rounds = build(IterateConfig, [Setting(key, value) for key, value in given.items()])
    assert training(rounds, 1, "M", "pairs", "out").report_to == ["mlflow"]
    monkeypatch.chdir(tmp_path)
    assert name_of(tmp_path / "runs" / "dpo-prefs") == "dpo-prefs"
    assert name_of(tmp_path / "it" / "rounds" / "001" / "run") == "it/rounds/001/run"
    assert name_of(Path("/data/it/rounds/001/run")) == "it/rounds/001/run"
