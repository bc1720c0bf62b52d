"""The page's settings: valid and refused values of flags."""

from __future__ import annotations

import pytest

from afzal import config
from afzal.api.asking import job_of
from afzal.cli import main
from afzal.errors import AfzalError


def settings(**given: str) -> config.AnnotateConfig:
    typed = [
        config.Setting(key, value, f"--{key}", typed=True) for key, value in {"data": "rows.jsonl", **given}.items()
    ]
    return config.build(config.AnnotateConfig, typed)


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("helpful=Which helps?", {"helpful": "Which helps?"}),
        ("helpful=Which helps, A or B?", {"helpful": "Which helps, A or B?"}),
        (
            "helpful=Which helps, A or B?,safe=Which is safe?",
            {"helpful": "Which helps, A or B?", "safe": "Which is safe?"},
        ),
        ("a=1 + 1 = 2?", {"a": "1 + 1 = 2?"}),
    ],
)
def test_an_axis_is_a_name_and_a_question(text, axes):
    assert settings(axis=text).axis == axes


@pytest.mark.parametrize("text", ["helpful", "=Which?", "helpful=", " =x"])
def test_what_is_no_axis_is_refused(text):
    with pytest.raises(AfzalError, match="NAME=QUESTION"):
        settings(axis=text)


@pytest.mark.parametrize(
    ("given", "people"),
    [
        ({}, ("",)),
        ({"overlap": "3"}, ("", "", "")),
        ({"annotators": "4", "overlap": "2"}, ("",) * 4),
        ({"annotators": "ann"}, ("ann",)),
        ({"annotators": "Gulnora Oʻktam,bob"}, ("Gulnora Oʻktam", "bob")),
    ],
)
def test_there_is_an_address_for_each_annotator(given, people):
    assert settings(**given).people == people


@pytest.mark.parametrize(
    "given",
    [
        {"annotators": "ann,ANN"},
        {"annotators": "ann,"},
        {"annotators": "x" * 61},
        {"annotators": "a\u202eb"},
        {"annotators": "ann", "overlap": "2"},
        {"annotators": "0"},
        {"practice": "3"},
        {"repeat": "1.5"},
        {"scale": "10"},
        {"mode": "choose"},
        {"port": "70000"},
    ],
)
def test_settings_that_contradict_are_refused(given):
    with pytest.raises(AfzalError):
        settings(**given)


def test_the_settings_reach_the_page():
    job = job_of(
        settings(data="data/my.pairs.jsonl", seed="7", repeat="0.05", order="file", markdown="true", scale="7")
    )
    assert (job.rules.seed, job.rules.repeat, job.rules.order, job.text, job.scale) == (7, 0.05, "file", "markdown", 7)
    assert str(job.out) == "my.votes"


def test_a_missing_file_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["annotate", "nowhere.jsonl", "--headless"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["rows.jsonl", "gold.jsonl", "no/such/folder.jsonl"])
def test_an_export_over_the_data_is_refused(capsys, monkeypatch, tmp_path, target):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "gold.jsonl"):
        (tmp_path / name).write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    assert main(["annotate", "rows.jsonl", "--gold", "gold.jsonl", "--export", target, "--headless"]) == 2
    assert "--export" in capsys.readouterr().err
    assert not (tmp_path / "rows.votes").exists()
