"""Commands that keep prompts as token ids refuse images and sounds by row, before they open a model's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_towers import made, picture

import afzal
from afzal import config
from afzal.compare.measure import read_prompts
from afzal.errors import AfzalError
from afzal.iterate.prompts import read_questions
from afzal.model.speakers import speaker_of
from afzal.tokens import Speaker

pytest.importorskip("PIL", reason="needs the extra vision")


@pytest.fixture
def speaker() -> Speaker:
    return speaker_of(*made("llava"))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "a.png").write_bytes(picture(1))
    rows = [{"prompt": f"Say {k}."} for k in range(3)] + [{"prompt": "<image>What is it?", "images": ["a.png"]}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "prompts.jsonl")


def test_rounds_refuse_a_picture_by_row(prompts: str, speaker: Speaker) -> None:
    settings = {"model": "m", "objective": "dpo", "prompts": prompts, "reward": "r.py:f", "out": "o"}
    with pytest.raises(AfzalError) as error:
        read_questions(config.build(config.IterateConfig, [config.Setting(k, v) for k, v in settings.items()]), speaker)
    assert error.value.what.endswith("prompts.jsonl:4 shows an image, and afzal iterate reads prompts of text only")
    assert error.value.why.startswith("1 of 4 prompts")
    assert "afzal judge ONE --against OTHER" in error.value.remedy


def test_held_out_prompts_of_rounds_too(prompts: str, speaker: Speaker, tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text('{"prompt": "One."}\n{"prompt": "Two."}\n')
    settings = {"model": "m", "objective": "dpo", "prompts": str(tmp_path / "plain.jsonl"), "reward": "r.py:f"}
    settings |= {"held_out_prompts": prompts, "out": "o"}
    with pytest.raises(AfzalError, match="shows an image"):
        read_questions(config.build(config.IterateConfig, [config.Setting(k, v) for k, v in settings.items()]), speaker)


def test_a_comparison_refuses_a_picture_by_row(prompts: str, speaker: Speaker) -> None:
    methods = [{"name": "a", "train": "dpo"}]
    settings = {"model": "m", "data": prompts, "prompts": prompts, "rewards": {"r": "r.py:f"}, "methods": methods}
    with pytest.raises(AfzalError) as error:
        read_prompts(config.build(config.CompareConfig, [config.Setting(k, v) for k, v in settings.items()]), speaker)
    said = "prompts.jsonl:4 shows an image, and a comparison or a sweep reads prompts of text only"
    assert error.value.what.endswith(said)
    assert "afzal generate with each run" in error.value.remedy


def test_a_comparison_is_refused_before_it_trains(prompts: str, tmp_path: Path) -> None:
    model, processor = made("llava")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "r.py").write_text("def f(prompt, answer):\n    return float(len(answer))\n")
    settings = {"model": str(tmp_path / "model"), "data": prompts, "prompts": prompts, "out": str(tmp_path / "out")}
    settings |= {"rewards": {"r": f"{tmp_path / 'r.py'}:f"}, "methods": [{"name": "a", "train": "dpo"}]}
    with pytest.raises(AfzalError, match="shows an image"):
        afzal.api.compare(settings)
    assert not list((tmp_path / "out").rglob("model.safetensors"))
