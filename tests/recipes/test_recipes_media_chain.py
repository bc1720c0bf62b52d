"""The demo sets of images and sounds through every command: check, train, generate, judge, annotate, aggregate, score,
report. Nothing is handed over but files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers_multimodal import made
from helpers_web import first_text, raw, served, vote_all

from afzal import cli, data, runs
from afzal.records import media_of
from afzal.web.client import Client

pytest.importorskip("PIL", reason="needs the extra vision")
pytest.importorskip("soundfile", reason="needs the extra audio")


def afzal(*arguments: Any) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def keys(source: Path) -> list[str]:
    return sorted(media.sha256 for item in data.read(source).items for media in media_of(item.prompt))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rows", "tag", "told"),
    [
        ("llava", "mllm_demo.json", "<img src=", "images: 8 (3 different)"),
        ("qwen2_audio", "mllm_audio_demo.json", "<audio controls", "sounds: 3 (3 different)"),
    ],
)
def test_a_demo_set_goes_from_the_first_look_to_the_report(
    family: str, rows: str, tag: str, told: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, base, sft, dpo = shared / "data" / "media" / rows, tmp_path / "base", tmp_path / "sft", tmp_path / "dpo"
    model, processor = made(family)
    model.save_pretrained(base)
    processor.save_pretrained(base)
    short = ("--max-tokens", 600, "--batch-size", 2, "--lr", "1e-3", "--warmup", 0)
    afzal("check", source)
    assert told in capsys.readouterr().out
    afzal("train", "sft", "--model", base, "--data", source, "--out", sft, *short)
    for name, asked, seed in (("a", sft, 0), ("b", base, 1)):
        given = ("--prompts", source, "--max-new-tokens", 8, "--seed", seed)
        afzal("generate", "--model", asked, *given, "--out", tmp_path / f"{name}.jsonl")
        assert keys(tmp_path / f"{name}.jsonl") == keys(source)
    longest = ("--judge", "rule:longest", "--out", tmp_path / "judged")
    afzal("judge", tmp_path / "a.jsonl", "--against", tmp_path / "b.jsonl", *longest)

    judged = tmp_path / "judged" / "rows.jsonl"
    original = {media.sha256: media.read() for item in data.read(source).items for media in media_of(item.prompt)}
    with served(str(judged), "--annotators", "ann", "--out", str(tmp_path / "votes"), cwd=tmp_path) as ((address,), _):
        token = address.rstrip("/").rpartition("/")[2]

        def choose(question: dict[str, Any]) -> dict[str, str]:
            """The text that sorts first, after checking that every medium of the question is served unchanged."""
            parts = [part for block in question["prompt"] for part in block["parts"] if "media" in part]
            assert parts
            for part in parts:
                status, _, body = raw(address, "GET", f"/media/{token}/{part['media']}")
                assert (status, body) == (200, original[part["media"]])
            return {"outcome": "first" if first_text(question, 0) <= first_text(question, 1) else "second"}

        n = vote_all(Client(address), choose)
    assert n == len(data.read(source).items)
    prefs = tmp_path / "prefs.jsonl"
    afzal("aggregate", tmp_path / "votes", "--out", prefs)
    assert keys(prefs) == keys(source)
    for row in runs.read_jsonl(prefs):
        texts = [response["turns"][0]["content"] for response in row["responses"]]
        (vote,) = row["votes"]
        assert texts[vote["first" if vote["outcome"] == "first" else "second"]] == min(texts)

    afzal("train", "dpo", "--model", sft, "--data", prefs, "--out", dpo, *short)
    first = next(row for row in runs.read_jsonl(dpo / "metrics.jsonl") if "loss" in row)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    afzal("train", "reward", "--model", sft, "--data", prefs, "--out", tmp_path / "reward", *short)
    for name, scorer in (
        ("policy", ("--policy", dpo, "--reference", sft)),
        ("model", ("--model", tmp_path / "reward")),
    ):
        capsys.readouterr()
        afzal("score", *scorer, "--data", prefs, "--out", tmp_path / f"{name}.jsonl")
        assert "None" not in capsys.readouterr().err
        scores = [row["score"] for row in runs.read_jsonl(tmp_path / f"{name}.jsonl")]
        assert len(set(scores)) == len(scores) == 2 * n
        assert all(map(math.isfinite, scores))
    (dpo / "report.html").unlink()
    afzal("report", dpo)
    assert tag in (dpo / "report.html").read_text("utf-8")
    assert json.loads((dpo / "report.json").read_text("utf-8"))
