"""When a run writes checkpoints, its messages about them, and what is on the disk when its status is finished."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import sys
import time
from collections import namedtuple

import pytest
from helpers_ranks import start_group
from helpers_runs import _CONTEXT, command_line, fingerprint, finished, one_thread, settings, start

from afzal import config, recipes, runs
from afzal.errors import AfzalError
from afzal.train import checkpoint, ranks
from afzal.train.timer import SaveTimer

QUIET = {"sample_prompts": 0, "eval_every_steps": 1000}
Usage = namedtuple("Usage", "total used free")


def wait_for(there, process):
    while not there() and process.is_alive():
        time.sleep(0.005)


def steps_in(out):
    return [step for step, _ in checkpoint.listed(out / "checkpoints")]


@pytest.mark.slow
def test_a_killed_run_resumes_from_the_checkpoint_of_the_clock_to_the_same_bytes(tmp_path):
    """No checkpoints by steps are set; the clock triggers one every few updates."""
    by_clock = {"save_every_steps": None, "save_every_minutes": 0.001, "epochs": 20.0, **QUIET}
    whole, killed = (
        settings(tmp_path, tmp_path / "whole", **by_clock),
        settings(tmp_path, tmp_path / "killed", **by_clock),
    )
    assert finished(start("dpo", whole)) == 0
    process = start("dpo", killed)
    wait_for(lambda: len(steps_in(tmp_path / "killed")) > 1, process)
    os.kill(process.pid, signal.SIGKILL)
    assert finished(process) == -signal.SIGKILL
    assert 0 < max(steps_in(tmp_path / "killed")) < 100
    assert finished(start("dpo", killed, resume=True)) == 0
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")


def test_the_default_asks_for_a_checkpoint_every_ten_minutes(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        sys.modules["afzal.recipes.train"], "SaveTimer", lambda seconds: asked.append(seconds) or SaveTimer(seconds)
    )
    given = settings(tmp_path, tmp_path / "a", max_steps=1, save_every_steps=None, **QUIET)
    recipes.train(config.make("dpo", **given))
    recipes.train(config.make("dpo", **(given | {"out": str(tmp_path / "b"), "save_every_minutes": 0})))
    assert asked == [600.0, float("inf")]


def test_how_often_a_run_saves_may_change_when_it_is_resumed(tmp_path):
    given = settings(tmp_path, tmp_path / "run", max_steps=3, **QUIET)
    recipes.train(config.make("dpo", **given))
    other = {"save_every_minutes": 0, "save_every_steps": None, "keep_checkpoints": 1}
    recipes.train(config.make("dpo", **(given | other)), resume=True)


def test_room_on_the_disk_is_looked_at_before_the_first_update(tmp_path, monkeypatch):
    """A checkpoint holds a float32 weight and two moments: 12 bytes for each of the n weights; three of them and the
    finished model (4 n) are 40 n bytes."""
    given = settings(tmp_path, tmp_path / "run", max_steps=1, **QUIET)
    made = config.make("dpo", **given)
    recipes.train(made)
    n = runs.open_run(tmp_path / "run").facts()["model"]["parameters"]
    free = 40 * n
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    recipes.train(made.model_copy(update={"out": str(tmp_path / "fits")}))
    free -= 1
    with pytest.raises(AfzalError) as caught:
        recipes.train(made.model_copy(update={"out": str(tmp_path / "too-little")}))
    assert caught.value.what.startswith(f"the run will need {40 * n / 1e9:.3g} GB of disk")
    assert "keep_checkpoints=1" in caught.value.remedy
    run = runs.open_run(tmp_path / "too-little")
    assert (run.facts()["status"], run.metrics()) == ("failed", [])
    recipes.train(made.model_copy(update={"out": str(tmp_path / "fewer"), "keep_checkpoints": 1}))  # 28 n bytes
    free = 0


def test_a_resumed_run_says_where_it_begins(tmp_path, capsys):
    given = settings(tmp_path, tmp_path / "run", max_steps=4, keep_checkpoints=2, **QUIET)
    made = config.make("dpo", **given)
    recipes.train(made)
    capsys.readouterr()
    recipes.train(made, resume=True)
    assert "resuming after step 4" in capsys.readouterr().err
    for _, path in checkpoint.listed(tmp_path / "run" / "checkpoints"):
        (path / "model.safetensors").unlink()
    runs.open_run(tmp_path / "run").update(status="interrupted")
    recipes.train(made, resume=True)
    said = capsys.readouterr().err
    assert said.count("the file is missing; falling back to the checkpoint before it") == 2
    assert f"no sound checkpoint in {tmp_path / 'run' / 'checkpoints'}, although run.json is at step 4" in said
    assert "starting again at step 0" in said


def _on_terminal(arguments, name):
    """Run the command line as the leader of a terminal session."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    terminal = os.open(name, os.O_RDWR)  # becomes the session's controlling terminal if there is none
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    from afzal.cli import main

    with one_thread():
        os._exit(main(arguments))  # at exit Python would flush to the closed terminal and report an error


def test_a_closed_terminal_stops_the_run_with_a_checkpoint(tmp_path):
    """Like a broken ssh connection: SIGHUP arrives, and every later write to the terminal fails."""
    given = settings(tmp_path, tmp_path / "run", save_every_steps=None, epochs=100.0, **QUIET)
    ours, theirs = pty.openpty()
    process = _CONTEXT.Process(target=_on_terminal, args=(command_line("dpo", given), os.ttyname(theirs)), daemon=True)
    process.start()
    run = tmp_path / "run"
    while process.is_alive() and not ((run / "metrics.jsonl").exists() and runs.open_run(run).metrics("train")):
        os.read(ours, 65536)  # otherwise the terminal's buffer fills and the run blocks
    os.close(theirs)
    os.close(ours)
    assert finished(process) == 129
    facts = runs.open_run(run).facts()
    assert (facts["status"], facts["stop_reason"]) == ("stopped", "SIGHUP")
    assert steps_in(run) == [facts["step"]]
    assert facts["step"] < 500


def test_the_finished_model_is_on_the_disk_before_the_run_says_so(tmp_path, monkeypatch):
    """Names of the files synced to disk, in order, and the status written to run.json."""
    done = []
    fsync, update = os.fsync, runs.Run.update

    def record(descriptor):
        done.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path / "run"))
        fsync(descriptor)

    def note(self, **facts):
        done.append(f"status {facts['status']}" if "status" in facts else "")
        update(self, **facts)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(runs.Run, "update", note)
    given = settings(tmp_path, tmp_path / "run", max_steps=1, **QUIET)
    recipes.train(config.make("dpo", **given))
    before = done[: done.index("status finished")]
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        assert name in before, name
    assert before[-1] == "."  # and the directory entries last


def test_names_shaped_like_tokens_stand_nowhere_in_what_a_run_writes(tmp_path):
    """In the name of the data file, in a prompt, and in the name of the run's own folder."""
    secret, key, other = "hf_" + "A1b2" * 6, "sk-" + "c3d4" * 6, "ghp_" + "E5f6" * 6
    given = settings(tmp_path, tmp_path / other, max_steps=1, sample_prompts=8, sample_tokens=1)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows += [{**rows[0], "prompt": f"{key} {k}?"} for k in range(40)] + [
        {**rows[0], "prompt": f"{key} dropped", "chosen": ""}
    ]
    data = tmp_path / f"{secret}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipes.train(config.make("dpo", **(given | {"data": str(data), "max_tokens": 200})))
    written = {
        p.name: p.read_text()
        for p in (tmp_path / other).iterdir()
        if p.suffix in (".json", ".jsonl", ".html", ".md", ".yaml")
    }
    assert "[hidden]" in written["samples.jsonl"]
    assert "[hidden]" in written["data.json"]
    assert {"run.json", "run.yaml", "report.json", "report.html", "dropped.jsonl", "README.md"} <= written.keys()
    for name, text in written.items():
        for shaped in (secret, key, other):
            assert shaped not in text, (name, shaped)


def _agreed(path, environment):
    os.environ.update(environment)
    import torch

    with ranks.joined(torch.device("cpu")):
        now = [0.0]
        timer = SaveTimer(600.0 if ranks.leads() else 60.0, lambda: now[0])
        said = []
        for _ in range(30):
            now[0] += 50.0
            said.append(timer.due())
        (path / f"{ranks.rank()}.json").write_text(json.dumps(said))


def test_all_ranks_save_when_the_clock_of_the_first_one_says_so(tmp_path):
    """By the clock of rank 1 a checkpoint is due after the first update, but that clock does not decide."""
    assert [finished(p) for p in start_group(_agreed, 2, tmp_path)] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second == [50.0 * k + 100.0 > 600.0 for k in range(1, 31)]
