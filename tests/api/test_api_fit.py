"""``afzal.fit`` from Python's own objects: rows, models, functions, callbacks, and the run that it returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from helpers_runs import pair_file, settings

import afzal
from afzal.data.in_memory import save_rows
from afzal.errors import AfzalError


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a short run, with rows in memory."""
    monkeypatch.chdir(tmp_path)
    made = settings(tmp_path, tmp_path / "run", max_steps=3, eval_every_steps=2, sample_prompts=0)
    rows = [json.loads(line) for line in Path(made["data"]).read_text().splitlines()]
    return {**made, "data": rows, "epochs": 1.0}


def numbers(run: afzal.api.Run) -> list[tuple[Any, ...]]:
    return [(m["kind"], m["step"], m["loss"]) for m in run.metrics()]


def test_rows_of_every_kind_are_the_rows_of_their_file(given: dict[str, Any]):
    rows = given.pop("data")
    of_file = afzal.fit("dpo", data=Path("pairs.jsonl"), **given)
    kinds = {
        "list": rows,
        "frame": pandas.DataFrame(rows),
        "dataset": datasets.Dataset.from_list(rows),
        "splits": datasets.DatasetDict(
            train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:2])
        ),
    }
    for name, kind in kinds.items():
        run = afzal.fit("dpo", **{**given, "data": kind, "out": name})
        assert run.facts()["data"]["fingerprint"] == of_file.facts()["data"]["fingerprint"], name
        assert numbers(run) == numbers(of_file), name
        assert list((run.path / "inputs").glob("*/*")) == [Path(run.facts()["data"]["source"])]


def test_the_default_folder_of_rows_is_named_and_kept(given: dict[str, Any]):
    given.pop("out")
    first = afzal.fit("dpo", **given)
    assert first.path == Path("runs/dpo-rows")
    with pytest.raises(AfzalError, match="already holds a run"):
        afzal.fit("dpo", **{**given, "data": given["data"][:20]})
    assert len(list((first.path / "inputs").glob("*/*"))) == 1  # nothing was written into the folder of another run


def test_a_run_on_rows_resumes_with_the_same_rows_and_no_others(given: dict[str, Any]):
    whole = afzal.fit("dpo", **{**given, "out": "whole"})
    stop = AfzalError("stop")

    def fails(progress: Any) -> None:
        if progress.step == 2:
            raise stop

    with pytest.raises(AfzalError, match="stop"):
        afzal.fit("dpo", on_step=fails, **given)
    with pytest.raises(AfzalError, match="content of the training data has changed"):
        afzal.fit("dpo", resume=True, **{**given, "data": given["data"][:-1]})
    assert numbers(afzal.fit("dpo", resume=True, **given)) == numbers(whole)


def test_a_value_without_rows_is_named_and_makes_no_folder(tmp_path: Path):
    with pytest.raises(AfzalError, match="data is a int"):
        save_rows(3, tmp_path / "x", "data")
    with pytest.raises(AfzalError, match="data is a dict"):
        save_rows({"prompt": ["a"]}, tmp_path / "x", "data")
    assert not (tmp_path / "x").exists()


def test_rows_that_json_cannot_represent_are_named(tmp_path: Path):
    with pytest.raises(AfzalError, match="row 1 of data is a int"):
        save_rows([{"prompt": "a"}, 3], tmp_path, "data")
    with pytest.raises(AfzalError, match="row 0 of data cannot be written") as raised:
        save_rows([{"prompt": "a", "image": object()}], tmp_path, "data")
    assert "images and sounds are given by path" in raised.value.why
    with pytest.raises(AfzalError, match="data holds no rows"):
        save_rows([], tmp_path, "data")
    assert list(tmp_path.iterdir()) == []  # no partial file is left
    splits = datasets.DatasetDict(a=datasets.Dataset.from_list([{"x": 1}]), b=datasets.Dataset.from_list([{"x": 1}]))
    with pytest.raises(AfzalError, match="several splits: a, b"):
        save_rows(splits, tmp_path, "data")


def test_missing_cells_numbers_and_dates_of_a_frame(tmp_path: Path):
    frame = pandas.DataFrame(
        {"prompt": ["a", "b"], "n": [1, None], "when": [pandas.Timestamp("2020-01-02"), pandas.NaT]}
    )
    path = save_rows(frame, tmp_path, "data")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [
        {"prompt": "a", "n": 1.0, "when": "2020-01-02T00:00:00"},
        {"prompt": "b", "n": None, "when": None},
    ]
    assert save_rows(frame, tmp_path, "data") == path
    assert save_rows(frame[:1], tmp_path, "data") != path


def test_pictures_of_a_dataset_keep_their_bytes(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    made = datasets.Dataset.from_dict(
        {"prompt": ["a"], "image": [image.new("RGB", (2, 2))]},
        features=datasets.Features(prompt=datasets.Value("string"), image=datasets.Image()),
    )
    path = save_rows(made, tmp_path, "data")
    assert path.suffix == ".parquet"
    assert datasets.Dataset.from_parquet(str(path))[0]["image"].size == (2, 2)


def test_callbacks_hear_every_step_and_evaluation(given: dict[str, Any]):
    heard: list[Any] = []
    run = afzal.fit(
        "dpo",
        on_step=lambda p: heard.append((p.step, p.steps, "loss" in p.metrics)),
        on_evaluation=[lambda p: heard.append(("held out", p.step)), lambda p: heard.append(p.path)],
        on_end=lambda r: heard.append(r.status()),
        **given,
    )
    path = run.path
    step = [(k, 3, True) for k in (1, 2, 3)]
    assert heard == [
        *(("held out", 0), path, step[0], step[1], ("held out", 2), path),
        *(step[2], ("held out", 3), path, "finished"),
    ]


def test_a_run_that_a_callback_stops_is_complete(given: dict[str, Any]):
    def enough(progress: Any) -> None:
        if progress.step == 1:
            progress.stop("the loss is low enough")

    run = afzal.fit("dpo", on_step=enough, **given)
    facts = run.facts()
    assert (run.status(), facts["step"], facts["steps"]) == ("finished", 1, 3)
    assert facts["stop_reason"].endswith("enough: the loss is low enough")
    assert run.latest("eval")["step"] == 1  # the trained model is also evaluated
    assert (run.path / "model.safetensors").is_file()


@pytest.mark.parametrize("place", ["on_step", "on_evaluation", "on_end"])
def test_a_callback_that_fails_is_named(given: dict[str, Any], place: str):
    def broken(_: Any) -> None:
        raise KeyError("lost")

    with pytest.raises(AfzalError, match=rf"the {place} callback .*broken failed: KeyError: 'lost'"):
        afzal.fit("dpo", **{place: broken}, **given)


def test_the_curves_of_a_run_are_columns(given: dict[str, Any]):
    run = afzal.fit("dpo", **given)
    held_out = run.curves("loss", kind="eval")
    assert held_out["step"] == [0, 2, 3]
    assert held_out["loss"][0] == pytest.approx(0.6931, abs=1e-3)
    frame = pandas.DataFrame(run.curves())
    assert list(frame["step"]) == [1, 2, 3]
    assert "rewards/margins" in frame
    with pytest.raises(AfzalError, match=r"no train metric 'los'.*did you mean loss"):
        run.curves("los")


def test_a_run_draws_itself_for_a_notebook(given: dict[str, Any]):
    run = afzal.fit("dpo", **given)
    shown = run._repr_html_()
    assert shown.count("data:image/svg+xml;base64,") == 2
    assert "finished" in shown
    assert "<script" not in shown
    assert "<style" not in shown  # nothing that affects the rest of the notebook
    plot = run.plot("loss", "tokens")
    assert list(plot.drawings) == ["loss", "tokens"]
    files = plot.save("drawings")
    assert [file.name for file in files] == ["loss.svg", "tokens.svg"]
    assert files[0].read_text().startswith("<svg")
    with pytest.raises(AfzalError, match="no metric lost"):
        run.plot("lost")


def test_a_run_can_be_used_as_its_folder(given: dict[str, Any]):
    run = afzal.fit("sft", **given)
    again = afzal.fit("dpo", **{**given, "model": run, "out": "second"})
    assert again.facts()["model"]["path"] == str(run.path)
    assert [r.name for r in afzal.api.runs()] == ["run", "second"]
    assert len(afzal.api.generate(model=again, prompts=["Q?"], n=2, max_new_tokens=2)) == 2


def test_a_hub_id_without_a_network_is_one_clear_error(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "load_dataset", _offline)
    with pytest.raises(AfzalError, match="hub data set could not be loaded") as raised:
        afzal.fit("dpo", **{**given, "data": "someone/something"})
    assert "check the path" in raised.value.remedy


def _offline(*_: Any, **__: Any) -> None:
    raise ConnectionError("Couldn't reach 'someone/something' on the Hub")


def test_rows_with_a_file_of_held_out_rows(given: dict[str, Any], tmp_path: Path):
    pair_file(tmp_path / "held.jsonl", 6)
    run = afzal.fit("dpo", **{**given, "eval_fraction": 0.0}, eval_data=pandas.DataFrame(given["data"][:5]))
    assert run.facts()["data"]["eval"] == 5
