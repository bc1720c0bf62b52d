"""A run killed at any moment and resumed ends with the same bytes as an uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from helpers_runs import fingerprint, finished, one_thread, settings, start

from afzal import config, recipes, runs
from afzal.errors import AfzalError
from afzal.train import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


def uninterrupted(folder, method, **overrides):
    """The fingerprint of a whole run, and its number of updates."""
    out = folder / f"whole-{method}-{len(list(folder.iterdir()))}"
    assert finished(start(method, settings(folder, out, **overrides))) == 0
    return fingerprint(out), updates(out)


def updates(out):
    """How many updates a run has logged so far."""
    path = out / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.exists() else 0


def wait_for(path, process):
    while not path.exists() and process.is_alive():
        time.sleep(0.005)


def interrupt(folder, method, name, after, number, pause=0.0, **overrides):
    """The settings and exit code of a run that got a signal once it had logged ``after`` updates."""
    out = folder / name
    given = settings(folder, out, **overrides)
    process = start(method, given)
    wait_for(out / "run.json", process)
    while process.is_alive() and updates(out) < after:
        time.sleep(0.001)
    time.sleep(pause)
    if process.is_alive():
        os.kill(process.pid, number)
    return given, finished(process)


def kill_and_resume(folder, method, name, after, pause=0.0, **overrides):
    """Exit code of the killed process, and the fingerprint after resuming it."""
    given, code = interrupt(folder, method, name, after, signal.SIGKILL, pause, **overrides)
    assert finished(start(method, given, resume=True)) == 0
    return code, fingerprint(folder / name)


@pytest.mark.parametrize(("method", "kills"), [("dpo", 1), pytest.param("dpo", 20, marks=pytest.mark.slow)])
def test_killed_runs_resume_to_the_same_bytes(folder, method, kills):
    expected, steps = uninterrupted(folder, method)
    rng, killed = random.Random(kills), 0
    for attempt in range(3 * kills):  # a run that ended before the signal was not killed
        name = f"killed-{kills}-{attempt}"
        # from before the first update on, and anywhere within an update
        code, files = kill_and_resume(folder, method, name, rng.randrange(steps * 3 // 4), rng.uniform(0, 0.1))
        assert files == expected
        killed += code == -signal.SIGKILL
        if killed == kills:
            break
    assert killed == kills, "too few processes were still alive to be killed"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "ipo", "kto"])
def test_other_methods_resume_to_the_same_bytes(folder, method):
    expected, steps = uninterrupted(folder, method)
    for i, share in enumerate((0.2, 0.6)):
        assert kill_and_resume(folder, method, f"{method}-{i}", round(share * steps))[1] == expected


@pytest.mark.slow
def test_lora_and_cached_reference_resume_to_the_same_bytes(folder):
    overrides = {"lora_rank": 2, "reference": "cached"}
    out = folder / "lora-whole"
    given = settings(folder, out, **overrides)
    assert finished(start("dpo", given)) == 0
    weights = (out / "adapter_model.safetensors").read_bytes()
    other = settings(folder, folder / "lora-cut", **overrides)
    process = start("dpo", other)
    wait_for(folder / "lora-cut" / "checkpoints" / "step-00000003", process)
    os.kill(process.pid, signal.SIGKILL)
    finished(process)
    assert finished(start("dpo", other, resume=True)) == 0
    assert (folder / "lora-cut" / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_sigterm_saves_at_once_and_resumes_to_the_same_bytes(folder, times):
    """Without periodic checkpoints the one at SIGTERM is the only one; the process exits with 143 before its end."""
    overrides = {"save_every_steps": None, "epochs": 8.0}
    expected, steps = uninterrupted(folder, "dpo", **overrides)
    rng, stopped = random.Random(times), 0
    for attempt in range(3 * times):  # a run that ended before the signal was not stopped
        name, after = f"term-{times}-{attempt}", rng.randint(1, steps // 2)
        given, code = interrupt(folder, "dpo", name, after, signal.SIGTERM, **overrides)
        if code == 143:
            stopped += 1
            run = runs.open_run(folder / name)
            saved = checkpoint.newest(run.checkpoints, pytest.fail)
            assert saved is not None
            assert checkpoint.step_of(saved) == run.facts()["step"] == run.metrics("train")[-1]["step"]
            assert after <= run.facts()["step"] < steps
            assert run.facts()["status"] == "stopped"
        else:
            assert code == 0, "only a run that was over before the signal came may end otherwise"
        assert finished(start("dpo", given, resume=True)) == 0
        assert fingerprint(folder / name) == expected
        if stopped == times:
            break
    assert stopped == times, "hardly any run was still going when the signal came"


def test_a_damaged_newest_checkpoint_is_passed_over_by_name(folder, capsys):
    expected, _ = uninterrupted(folder, "dpo")
    out = folder / "damaged"
    given = settings(folder, out, keep_checkpoints=3)
    process = start("dpo", given)
    wait_for(out / "checkpoints" / "step-00000006", process)
    os.kill(process.pid, signal.SIGKILL)
    finished(process)
    newest = checkpoint.newest(out / "checkpoints", lambda note: None)
    victim = newest / "model.safetensors"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    with one_thread():
        recipes.train(config.make("dpo", **given), resume=True)
    assert "model.safetensors" in capsys.readouterr().err
    assert fingerprint(out)["weights"] == expected["weights"]


def test_changed_settings_or_data_are_refused_by_name_on_resume(folder, tmp_path):
    out = tmp_path / "run"
    given = settings(folder, out, max_steps=2)
    recipes.train(config.make("dpo", **given))
    for change in ({"lr": 2e-3}, {"seed": 5}, {"beta": 0.5}, {"max_tokens": 64}, {"batch_size": 4}, {"dtype": "bf16"}):
        with pytest.raises(AfzalError, match=f"(?s)cannot be resumed.*{next(iter(change))}"):
            recipes.train(config.make("dpo", **(given | change)), resume=True)
    data = tmp_path / "other.jsonl"
    data.write_text((folder / "pairs.jsonl").read_text().replace("please", "kindly"))
    (folder / "pairs.jsonl").rename(folder / "kept.jsonl")
    data.rename(folder / "pairs.jsonl")
    try:
        with pytest.raises(AfzalError, match="content of the training data has changed"):
            recipes.train(config.make("dpo", **given), resume=True)
    finally:
        (folder / "kept.jsonl").rename(folder / "pairs.jsonl")


def test_a_command_that_failed_at_once_may_be_mended(folder, tmp_path):
    given = settings(folder, tmp_path / "run", max_steps=1)
    with pytest.raises(AfzalError, match="lora_targets"):
        recipes.train(config.make("dpo", **given, lora_rank=2, lora_targets=["no_such_layer"]))
    assert runs.open_run(tmp_path / "run").facts()["status"] == "failed"
    recipes.train(config.make("dpo", **given))
    facts = runs.open_run(tmp_path / "run").facts()
    assert facts["status"] == "finished"
    assert "no_such_layer" not in str(facts)


def test_a_second_run_into_the_same_folder_is_refused(folder, tmp_path):
    given = settings(folder, tmp_path / "run", max_steps=1)
    recipes.train(config.make("dpo", **given))
    with pytest.raises(AfzalError, match="already holds a run"):
        recipes.train(config.make("dpo", **given))
    assert runs.open_run(tmp_path / "run").facts()["status"] == "finished"
