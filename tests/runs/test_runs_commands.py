"""``afzal runs`` and ``afzal env``: what they print, for people, pipes and programs."""

import json
import sys

import pytest

from afzal import runs
from afzal.cli import main
from afzal.runs import files
from afzal.runs.environment import extras


@pytest.fixture
def three(tmp_path):
    """Three runs: finished with evaluations, stopped early without evaluations, and killed."""
    with runs.create(tmp_path / "a-dpo", {}) as run:
        run.update(method="dpo", status="finished", step=20, steps=20, seconds=12.5)
        run.log({"kind": "eval", "step": 0, "loss": 0.6931, "rewards/accuracies": 0.0})
        run.log({"kind": "eval", "step": 20, "loss": 0.5, "rewards/accuracies": 0.625, "n": 8.0})
        run.log({"kind": "train", "step": 20, "loss": 0.4, "rewards/accuracies": 0.9})
    with runs.create(tmp_path / "deep" / "b-sft", {}) as run:
        run.update(method="sft", status="stopped", step=3, steps=9)
        run.log({"kind": "train", "step": 3, "loss": 2.25})
    with runs.create(tmp_path / "c-killed", {}):
        pass
    return tmp_path


def test_plain_output_is_tab_separated(three, capsys):
    assert main(["runs", str(three)]) == 0
    head, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    measured = ["train loss", "held-out loss", "held-out accuracy", "of"]
    assert head == ["name", "method", "status", "steps", *measured, "started", "path"]
    assert [row[:8] for row in rows] == [
        ["a-dpo", "dpo", "finished", "20/20", "0.4000", "0.5000", "62.5%", "8"],
        ["c-killed", "-", "interrupted", "0", "-", "-", "-", "-"],
        ["b-sft", "sft", "stopped", "3/9", "2.2500", "-", "-", "-"],
    ]
    assert rows[2][9] == str(three / "deep" / "b-sft")


def test_a_number_of_one_is_no_yes(capsys, monkeypatch):
    monkeypatch.setattr(
        "afzal.api.inspecting.env", lambda: {"hardware": {"cpus": 1, "gpus": [], "mps": True, "cuda": None}}
    )
    assert main(["env"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown == [["hardware:"], ["cpus", "1"], ["gpus", "none"], ["mps", "yes"], ["cuda", "no"]]


def test_json_output_has_the_numbers(three, capsys):
    assert main(["runs", str(three), "--json"]) == 0
    first, second, third = json.loads(capsys.readouterr().out)
    assert (first["loss"], first["accuracy"], first["step"], first["seconds"]) == (0.5, 0.625, 20, 12.5)
    assert (second["status"], second["loss"]) == ("interrupted", None)
    assert (first["train_loss"], first["of"]) == (0.4, 8)
    assert (third["train_loss"], third["loss"], third["accuracy"], third["of"]) == (2.25, None, None, None)


def test_a_terminal_gets_a_table_that_names_no_markup(three, capsys, monkeypatch):
    with runs.create(three / "[red]odd[", {}) as run:
        run.update(status="failed")
        run.log({"kind": "train", "loss": float("nan")})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["runs", str(three)]) == 0
    out = capsys.readouterr().out
    assert "[red]odd[" in out
    assert "62.5%" in out
    assert "\t" not in out


def test_no_runs_is_no_error_and_a_missing_folder_is(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no runs below" in captured.err
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["runs", str(tmp_path / "missing")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_env_for_people_and_programs(capsys):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["versions:", "hardware:", "extras:"]
    assert main(["env", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["versions"]["torch"] in text
    assert printed["hardware"]["cpus"] >= 1
    assert printed["extras"].keys() == extras().keys()


def test_env_asks_torch_only_when_told(capsys):
    import torch

    assert main(["env", "--torch", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["torch"]
    assert printed["threads"] == torch.get_num_threads()
    assert len(printed["devices"]) == torch.cuda.device_count()


def test_extras_name_what_is_missing(monkeypatch):
    from importlib import metadata

    listed = ["torch>=2.11", "pytest>=8 ; extra == 'dev'", 'no-such-package==1; extra == "odd"', "pip; extra == 'odd'"]
    monkeypatch.setattr(metadata, "requires", lambda _: listed)
    assert extras() == {"dev": [], "odd": ["no-such-package"]}


def test_listing_a_run_reads_no_more_than_the_end_of_its_log(tmp_path, monkeypatch):
    """One with evaluations, whose last is far from the end, one without, and one that an earlier version wrote."""
    updates = [{"kind": "train", "step": k, "loss": k / 4} for k in range(4000)]
    for name in ("evaluated", "plain", "older"):
        with runs.create(tmp_path / name, {}) as run:
            if name != "plain":
                run.log({"kind": "eval", "step": 0, "loss": 0.5})
            runs.append_jsonl(run.path / "metrics.jsonl", updates)
            facts = run.facts()
            if name == "older":
                del facts["latest"]
                runs.atomic_write(run.path / "run.json", json.dumps(facts))
    parsed = []
    monkeypatch.setattr(files, "_parse", lambda line, parse=files._parse: parsed.append(line) or parse(line))
    latest = {run.name: (run.latest("eval"), run.latest("train")) for run in runs.find(tmp_path)}
    assert latest["evaluated"][0] == {"kind": "eval", "step": 0, "loss": 0.5}
    assert latest["plain"][0] == latest["older"][0] == {}
    assert [trained for _, trained in latest.values()] == [updates[-1]] * 3
    assert sum(map(len, parsed)) < 4 * 65536  # of 3 x 180 kB


def test_the_latest_evaluation_is_that_of_the_log_as_it_was_cut(tmp_path):
    with runs.create(tmp_path / "a", {}) as run:
        run.log({"kind": "eval", "step": 1, "loss": float("nan")})
        size = run.metrics_bytes()
        run.log({"kind": "eval", "step": 2, "loss": 0.25})
        assert run.latest("eval")["step"] == 2
        run.truncate_metrics(size)
        assert run.latest("eval")["step"] == 1
        assert run.latest("eval")["loss"] != run.latest("eval")["loss"]
        run.truncate_metrics(0)
        assert run.latest("eval") == {}
