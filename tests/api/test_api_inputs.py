"""Python arguments become settings: rows become files, other values under the same names do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import afzal
from afzal.api.inputs import out_of, plain
from afzal.errors import AfzalError

ROWS = [{"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}]


def samples(prompt: str, answer: str) -> float:
    """A reward with the name of a setting that takes rows."""
    return float(len(answer) - len(prompt))


def test_rows_become_a_file_wherever_a_setting_names_rows(tmp_path: Path):
    settings = plain(
        {"data": ROWS, "methods": [{"name": "dpo", "data": ROWS}], "beta": 0.1, "eval_data": None}, tmp_path
    )
    assert Path(settings["data"]).read_text().count("\n") == 1
    assert settings["methods"][0]["data"] == settings["data"], "the same rows are the same file"
    assert settings["beta"] == 0.1
    assert "eval_data" not in settings


def test_a_count_under_a_name_of_rows_stays_a_number(tmp_path: Path):
    assert plain({"samples": 4}, tmp_path) == {"samples": 4}
    assert not list(tmp_path.iterdir())


def test_values_of_an_axis_are_files_not_rows(tmp_path: Path):
    space = {"data": ["a.jsonl", tmp_path / "b.jsonl"], "beta": [0.1, 0.5]}
    assert plain({"space": space}, tmp_path)["space"] == {
        "data": ["a.jsonl", str(tmp_path / "b.jsonl")],
        "beta": [0.1, 0.5],
    }


def test_a_function_under_the_name_of_a_rows_setting_stays_a_function(tmp_path: Path):
    rewards = plain({"rewards": {"samples": samples, "data": samples}}, tmp_path)["rewards"]
    assert rewards["samples"] == rewards["data"]
    assert rewards["samples"].endswith(":samples")


@pytest.mark.parametrize("key", ["data", "held_out_prompts", "constraint_data", "gold"])
def test_a_folder_of_another_run_is_refused_before_any_rows_are_written(tmp_path: Path, key: str):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(AfzalError):
        out_of({key: ROWS, "out": tmp_path}, "runs/rows", resume=False)
    assert out_of({key: ROWS, "out": tmp_path}, "runs/rows", resume=True) == tmp_path
    assert out_of({key: "rows.jsonl", "out": tmp_path}, "runs/rows", resume=False) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_method_may_be_passed_like_a_setting():
    with pytest.raises(AfzalError, match="unknown method 'dpoo'"):
        afzal.fit(method="dpoo", model="m", data=ROWS)


def test_rows_without_a_folder_take_the_usual_one():
    assert out_of({"data": ROWS}, "runs/rows", resume=False) == Path("runs/rows")
    assert out_of({"data": "rows.jsonl"}, "runs/rows", resume=False) is None


def test_sampling_settings_need_prompts(tmp_path: Path):
    with pytest.raises(AfzalError, match="n, temperature: no answers are sampled, so this has no effect"):
        afzal.api.judge(ROWS, judge="rule:longest", n=2, temperature=0.0, out=tmp_path)


def test_the_annotation_page_checks_its_export_before_it_serves(tmp_path: Path):
    rows: Any = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}\n')
    with pytest.raises(AfzalError, match="is a file that the page reads"):
        afzal.api.annotate(rows, export=str(rows), headless=True)
    with pytest.raises(AfzalError, match="is not a folder"):
        afzal.api.annotate(rows, export=str(tmp_path / "none" / "out.jsonl"), headless=True)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("said", "call"),
    [
        ("model cannot be 3", lambda: afzal.fit("dpo", model=3, data=ROWS)),
        ("model cannot be None", lambda: afzal.fit("dpo", model=None, data=ROWS)),
        ("out cannot be 3", lambda: afzal.fit("dpo", model="m", data=ROWS, out=3)),
        ("on_step cannot be 3", lambda: afzal.fit("dpo", model="m", data="rows.jsonl", on_step=3)),  # type: ignore[arg-type]
        ("by cannot be 'majorty'", lambda: afzal.api.aggregate(ROWS, by="majorty")),  # type: ignore[arg-type]
        ("labels cannot be 'hard'", lambda: afzal.api.aggregate(ROWS, labels="hard")),  # type: ignore[arg-type]
        ("resamples cannot be 0", lambda: afzal.api.aggregate(ROWS, resamples=0)),
        ("gold_sizes cannot be 10", lambda: afzal.api.aggregate(ROWS, gold_sizes=10)),  # type: ignore[arg-type]
        ("group_by cannot be 3", lambda: afzal.api.aggregate(ROWS, group_by=3)),  # type: ignore[arg-type]
        ("out cannot be 3", lambda: afzal.api.aggregate(ROWS, out=3)),  # type: ignore[arg-type]
        ("judge cannot be 3", lambda: afzal.api.judge(ROWS, judge=3)),
        ("columns cannot be", lambda: afzal.api.check(ROWS, columns=["prompt"])),  # type: ignore[arg-type]
        ("run cannot be 3", lambda: afzal.api.report(3)),  # type: ignore[arg-type]
        ("root cannot be 3", lambda: afzal.api.runs(3)),  # type: ignore[arg-type]
        ("settings cannot be 3", lambda: afzal.api.sweep(3)),  # type: ignore[arg-type]
    ],
)
def test_a_value_of_another_kind_is_named_with_a_remedy(said: str, call: Any):
    with pytest.raises(AfzalError) as error:
        call()
    assert said in error.value.what
    assert error.value.remedy
