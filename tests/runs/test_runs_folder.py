"""Run folders: creating without overwriting, one writer, facts, metrics that survive a kill, finding."""

import errno
import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from afzal import __version__, runs
from afzal.errors import AfzalError
from afzal.runs import lock
from afzal.runs.folder import refuse_used


def test_create_writes_configuration_and_first_facts(tmp_path):
    run = runs.create(tmp_path / "a" / "b", {"method": "dpo", "beta": 0.1, "data": Path("x.jsonl"), "seeds": (1, 2)})
    assert yaml.safe_load((run.path / "run.yaml").read_text()) == {
        "method": "dpo",
        "beta": 0.1,
        "data": "x.jsonl",
        "seeds": [1, 2],
    }
    facts = run.facts()
    assert facts["afzal"] == __version__
    assert facts["status"] == "running"
    assert facts["step"] == 0
    assert facts["versions"]["python"].startswith("3.")
    assert facts["hardware"]["cpus"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["started"])
    run.release()
    assert not (run.path / "run.lock").exists()


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / ".gitkeep").touch()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "run.lock").touch()  # of a writer that was killed before its first fact
    with runs.create(tmp_path, {}) as run:
        assert run.facts()["status"] == "running"


def failed(path: Path, **facts) -> Path:
    with runs.create(path, {"lr": 1.0}) as run:
        run.update(**{"status": "failed", "stop_reason": "AfzalError: no such model", **facts})
    (path / "dropped.jsonl").touch()
    (path / "data.json").write_text("{}")
    return path


def test_a_run_that_failed_while_it_was_set_up_may_be_started_again(tmp_path):
    with runs.create(failed(tmp_path / "run"), {"lr": 2.0}) as run:
        assert run.facts()["status"] == "running"
        assert "stop_reason" not in run.facts()
        assert yaml.safe_load((run.path / "run.yaml").read_text()) == {"lr": 2.0}


@pytest.mark.parametrize("status", ["failed", "stopped", "running"])
def test_a_run_that_ended_before_its_first_update_may_be_started_again(tmp_path, status):
    path = failed(tmp_path / "run", status=status)  # running: nobody holds it, so that it was killed
    for record in (
        {"kind": "eval", "step": 0, "loss": 0.7},
        {"kind": "memory", "step": 0},
        {"kind": "rollout", "step": 0},
    ):
        runs.append_jsonl(path / "metrics.jsonl", [record])
    (path / "samples.jsonl").touch()
    (path / "replies.sqlite").write_text("paid for")
    (path / "best" / "step-00000000").mkdir(parents=True)
    (path / "checkpoints" / ".tmp-step-00000001").mkdir(parents=True)
    with runs.create(path, {"lr": 2.0}) as run:
        assert run.metrics() == []
        assert sorted(f.name for f in path.iterdir() if f.name not in ("run.lock", "data.json", "dropped.jsonl")) == [
            "replies.sqlite",
            "run.json",
            "run.yaml",
        ]


@pytest.mark.parametrize("facts", [{"status": "waiting"}, {"status": "finished"}, {"status": "stopped", "step": 1}])
def test_any_other_run_stays(tmp_path, facts):
    path = failed(tmp_path / "run", **facts)
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    with pytest.raises(AfzalError, match="already holds a run"):
        runs.create(path, {"lr": 2.0})
    assert {f.name: f.read_bytes() for f in path.iterdir()} == before


@pytest.mark.parametrize("record", [{"kind": "train", "step": 1}, {"kind": "eval", "step": 2}])
def test_a_failed_run_with_an_update_stays(tmp_path, record):
    path = failed(tmp_path / "run")
    runs.append_jsonl(path / "metrics.jsonl", [{"kind": "eval", "step": 0}, record])
    with pytest.raises(AfzalError, match="already holds a run"):
        runs.create(path, {"lr": 2.0})
    assert len(runs.open_run(path).metrics()) == 2


def test_rounds_that_failed_before_they_wrote_anything_may_be_started_again(tmp_path):
    path = failed(tmp_path / "run")
    (path / "rounds" / "000").mkdir(parents=True)
    with runs.create(path, {"lr": 2.0}) as run:
        assert run.facts()["status"] == "running"


def test_rounds_that_failed_with_answers_stay(tmp_path):
    path = failed(tmp_path / "run")
    (path / "rounds" / "000").mkdir(parents=True)
    (path / "rounds" / "000" / "answers.jsonl").write_text("{}")
    with pytest.raises(AfzalError, match="already holds a run"):
        runs.create(path, {"lr": 2.0})
    assert (path / "rounds" / "000" / "answers.jsonl").exists()


@pytest.mark.parametrize("name", ["checkpoints/step-00000001", "notes.txt", "adapter_model.safetensors"])
def test_what_lies_beside_a_failed_run_keeps_its_folder(tmp_path, name):
    path = failed(tmp_path / "run")
    (path / name).mkdir(parents=True)
    with pytest.raises(AfzalError, match="already holds a run"):
        runs.create(path, {"lr": 2.0})
    assert (path / name).exists()


def test_a_folder_with_other_things_is_refused_and_untouched(tmp_path):
    for name in ("thesis.tex", "a", "b", "c"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(AfzalError) as caught:
        runs.create(tmp_path, {})
    assert "nothing was overwritten" in str(caught.value)
    assert "a, b, c and 1 more" in caught.value.why
    assert "--out" in caught.value.remedy
    assert "--resume" not in caught.value.remedy
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "thesis.tex"]


def test_an_existing_run_is_refused_with_resume_as_the_remedy(tmp_path):
    with runs.create(tmp_path, {"beta": 0.1}) as run:
        run.update(step=7)
    before = (tmp_path / "run.yaml").read_bytes()
    with pytest.raises(AfzalError) as caught:
        runs.create(tmp_path, {"beta": 0.5})
    assert "at step 7" in caught.value.what
    assert "--resume" in caught.value.remedy
    assert (tmp_path / "run.yaml").read_bytes() == before
    assert not (tmp_path / "run.lock").exists()


def test_facts_are_replaced_atomically(tmp_path, monkeypatch):
    """A failure in the middle of an update leaves the old facts and no stray files."""
    run = runs.create(tmp_path, {})
    run.update(step=1, data={"rows": 3})
    real = os.write

    def ten_bytes_left(descriptor, data):
        if len(data) > 10:
            return real(descriptor, memoryview(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    before = run.facts()
    files = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(os, "write", ten_bytes_left)
    with pytest.raises(AfzalError, match=r"run\.json"):
        run.update(step=2)
    monkeypatch.undo()
    assert run.facts() == before
    assert sorted(os.listdir(tmp_path)) == files
    run.update(step=2)
    assert run.facts() == before | {"step": 2}
    run.release()


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, memoryview(data)[:3]))
    runs.atomic_write(tmp_path / "x", "0123456789")
    runs.append_jsonl(tmp_path / "y", [{"a": 1}, {"b": "ü"}])
    monkeypatch.undo()
    assert (tmp_path / "x").read_text() == "0123456789"
    assert list(runs.read_jsonl(tmp_path / "y")) == [{"a": 1}, {"b": "ü"}]


def test_atomic_write_syncs_before_it_renames(tmp_path, monkeypatch):
    events = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (events.append(name), real(*a))[1])
    runs.atomic_write(tmp_path / "x", b"1")
    monkeypatch.undo()
    assert events == ["write", "fsync", "replace", "fsync"]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_round_trip_with_numbers_of_other_libraries(tmp_path):
    run = runs.create(tmp_path, {})
    run.log({"kind": "train", "step": 1, "loss": np.float32(0.5), "n": np.int64(3), "where": Path("a/b")})
    run.log({"kind": "eval", "step": 1, "loss": 0.1 + 0.2})
    assert run.metrics() == [
        {"kind": "train", "step": 1, "loss": 0.5, "n": 3, "where": "a/b"},
        {"kind": "eval", "step": 1, "loss": 0.1 + 0.2},
    ]
    assert run.metrics("eval") == [{"kind": "eval", "step": 1, "loss": 0.1 + 0.2}]
    assert run.last("train")["step"] == 1
    assert run.last("sweep") == {}
    run.release()


def test_numbers_that_are_not_finite_stay_so_and_the_file_stays_strict_json(tmp_path):
    run = runs.create(tmp_path, {})
    run.log({"kind": "train", "loss": math.nan, "up": math.inf, "down": np.float32(-np.inf), "parts": [math.nan]})

    def forbid(name):
        raise AssertionError(name)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=forbid)
    assert line["loss"] == "NaN"
    (record,) = run.metrics()
    assert math.isnan(record["loss"])
    assert (record["up"], record["down"]) == (math.inf, -math.inf)
    run.release()


def test_a_torn_last_line_is_passed_over_and_a_bad_one_inside_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert [r["step"] for r in runs.read_jsonl(path)] == [1, 2]
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(AfzalError) as caught:
        list(runs.read_jsonl(path))
    assert caught.value.where == f"{path}:2"
    assert list(runs.read_jsonl(tmp_path / "missing")) == []


def test_truncating_goes_back_to_a_checkpoint(tmp_path):
    run = runs.create(tmp_path, {})
    assert run.metrics_bytes() == 0
    run.log({"kind": "train", "step": 1})
    mark = run.metrics_bytes()
    run.log({"kind": "train", "step": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"torn')
    run.truncate_metrics(mark)
    run.log({"kind": "train", "step": 2})
    assert [r["step"] for r in run.metrics()] == [1, 2]
    with pytest.raises(AfzalError, match="would have a gap"):
        run.truncate_metrics(10_000)
    run.release()


def test_last_reads_backwards_over_block_borders(tmp_path):
    run = runs.create(tmp_path, {})
    runs.append_jsonl(tmp_path / "metrics.jsonl", [{"kind": "eval", "step": 0, "note": "é" * 50_000}])
    runs.append_jsonl(tmp_path / "metrics.jsonl", ({"kind": "train", "step": k} for k in range(20_000)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert run.last("train") == {"kind": "train", "step": 19_999}
    assert run.last("eval")["note"] == "é" * 50_000
    run.release()


# --- one writer -------------------------------------------------------------------------------------------------------

_HOLDER = (
    "import sys, time\n"
    "from afzal import runs\n"
    "run = runs.{how}(sys.argv[1]{rest})\n"
    "print('ready', flush=True)\n"
    "time.sleep(600)\n"
)


def _hold(path: Path, how: str) -> subprocess.Popen:
    script = _HOLDER.format(how=how, rest=", {}" if how == "create" else "")
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_cannot_write_one_run_and_a_killed_one_frees_it(tmp_path):
    holder = _hold(tmp_path, "create")
    try:
        with pytest.raises(AfzalError) as caught:
            runs.resume(tmp_path)
        assert f"process {holder.pid} on" in caught.value.why
        assert runs.open_run(tmp_path).status() == "running"  # reading takes no lock
        with pytest.raises(AfzalError, match="already holds a run"):  # though it has no update yet
            refuse_used(tmp_path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert runs.open_run(tmp_path).status() == "interrupted"
    with runs.resume(tmp_path) as run:
        assert run.status() == "running"
        other = _HOLDER.format(how="resume", rest="").replace("time.sleep(600)", "")
        done = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True)
        assert "is being written by another process" in done.stderr
        assert f"process {os.getpid()} on" in done.stderr


def test_the_same_process_may_claim_twice_and_a_child_does_not_inherit(tmp_path):
    run = runs.create(tmp_path, {})
    runs.resume(tmp_path)
    run.update(status="finished")
    assert run.status() == "finished"
    run.release()
    holder = _hold(tmp_path, "resume")
    holder.kill()
    holder.wait()


def test_reading_the_status_does_not_disturb_the_writer(tmp_path):
    run = runs.create(tmp_path, {})
    for _ in range(3):
        assert run.status() == "running"
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from afzal import runs; print(runs.open_run(sys.argv[1]).status())",
                tmp_path,
            ],
            capture_output=True,
            text=True,
        )
        assert done.stdout == "running\n"
    run.release()


def test_without_kernel_locks_the_process_id_decides(tmp_path, monkeypatch):
    """A file system that cannot lock: a living process holds, a dead or recycled one does not."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    sleeper = subprocess.Popen(["sleep", "600"])
    me = lock._own_record()
    record = me | {"pid": sleeper.pid, "started": lock._start_time(sleeper.pid)}

    def left_by(**changes):
        (tmp_path / "run.lock").write_text(json.dumps(record | changes))

    left_by()
    assert lock.acquire(tmp_path) == record
    assert lock.holder(tmp_path) == record
    left_by(started="1")  # the process id now belongs to another process
    assert lock.holder(tmp_path) is None
    left_by(host="another-machine")
    assert lock.acquire(tmp_path) is not None
    left_by()
    sleeper.kill()
    sleeper.wait()
    assert lock.holder(tmp_path) is None
    assert lock.acquire(tmp_path) is None
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    lock.release(tmp_path)


def test_a_lock_file_that_is_something_else_is_refused_and_untouched(tmp_path):
    precious = tmp_path / "thesis.tex"
    precious.write_text("precious")
    linked, folder, pipe = (tmp_path / name for name in ("linked", "folder", "pipe"))
    for out in (linked, folder, pipe):
        out.mkdir()
    (linked / "run.lock").symlink_to(precious)
    os.mkfifo(pipe / "run.lock")
    (folder / "run.lock").mkdir()
    for out, why in ((linked, "symbolic links"), (folder, "a folder of that name is in the way")):
        with pytest.raises(AfzalError, match="cannot write") as caught:
            runs.create(out, {})
        assert why in caught.value.why
        assert os.listdir(out) == ["run.lock"]
    assert precious.read_text() == "precious"
    assert lock.holder(pipe) is None  # the check does not wait for a writer of the pipe


# --- finding ----------------------------------------------------------------------------------------------------------


def _run(path: Path, **facts) -> None:
    with runs.create(path, {}) as run:
        run.update(**facts)


def test_find_lists_runs_below_a_folder_by_path(tmp_path):
    for name in ("b", "a/round-1", "a/round-2", ".hidden/c", "a/round-1/checkpoints/x"):
        _run(tmp_path / name)
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "not-a-run" / "run.json").write_text('{"someone": "else"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [str(r.path.relative_to(tmp_path)) for r in runs.find(tmp_path)] == ["a/round-1", "a/round-2", "b"]
    assert [r.path for r in runs.find(tmp_path / "b")] == [tmp_path / "b"]
    with pytest.raises(AfzalError, match="no folder"):
        runs.find(tmp_path / "missing")


def test_open_run_refuses_what_is_not_a_run(tmp_path):
    with pytest.raises(AfzalError, match="does not exist"):
        runs.open_run(tmp_path / "missing")
    with pytest.raises(AfzalError, match=r"has no run\.json"):
        runs.open_run(tmp_path)


def test_environment_imports_nothing_heavy():
    script = (
        "import sys, json\n"
        "from afzal import runs\n"
        "e = runs.environment()\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'numpy', 'yaml', 'pydantic') if m in sys.modules]\n"
        "print(json.dumps([e, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    environment, heavy = json.loads(done.stdout)
    assert heavy == []
    assert environment["versions"]["torch"].split(".")[0] == "2"
    assert environment["hardware"]["memory_bytes"] > 1 << 28


@pytest.mark.parametrize("written", [(), ("run.yaml",), ("run.yaml", "run.json")])
def test_a_second_start_into_a_folder_hears_of_the_first_at_any_moment_of_it(tmp_path, written):
    """The message is neither that the folder holds a run to resume nor that it holds other files."""
    made = runs.create(tmp_path / "made", {})
    made.release()
    out = tmp_path / "out"
    out.mkdir()
    for name in written:
        (out / name).write_bytes((made.path / name).read_bytes())
    script = "import sys, time; from afzal import runs; runs.Run(__import__('pathlib').Path(sys.argv[1])).claim(); "
    script += "print('claimed', flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(AfzalError, match=f"(?s)is being written by another process.*process {other.pid}"):
            runs.create(out, {})
    finally:
        other.kill()
        other.wait()
