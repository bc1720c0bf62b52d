"""Runs on rows with images and sounds: they start at the right loss, resume to the same bytes, and load elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers_multimodal import FAMILIES, made, picture, tone
from helpers_runs import interrupt_after
from safetensors.torch import load_file

from afzal import config, data, recipes, runs
from afzal.errors import AfzalError
from afzal.generate.run import generate
from afzal.records import media_of
from afzal.tokens.display import display_tokens

pytest.importorskip("PIL", reason="needs the extra vision")
pytest.importorskip("soundfile", reason="needs the extra audio")


def place(folder: Path, family: str, rows: int = 8, every: int = 4) -> dict[str, Any]:
    """A model, a file of preferences in which every ``every``-th row has no medium, and the settings of a short run."""
    kind = FAMILIES[family][0]
    model, processor = made(family)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    written = []
    for k in range(rows):
        name = f"{k}.png" if kind == "image" else f"{k}.wav"
        (folder / name).write_bytes(picture(k) if kind == "image" else tone(200 + 50 * k))
        shown = [{"type": kind, "path": name}, {"type": "text", "text": "What is it?"}]
        prompt = [{"role": "user", "content": f"Say {k}." if k % every == every - 1 else shown}]
        answers = {"chosen": f"good {k}", "rejected": f"bad, {k}"}
        row = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
        written.append(json.dumps({"prompt": prompt, **row}) + "\n")
    (folder / "data.jsonl").write_text("".join(written))
    given = {"model": str(folder / "model"), "data": str(folder / "data.jsonl"), "max_tokens": 300, "batch_size": 2}
    return given | {"epochs": 1.0, "lr": 1e-3, "warmup": 0, "eval_fraction": 0.25, "sample_prompts": 1}


def weights(run: Path) -> dict[str, Any]:
    return {n: w.tolist() for n, w in load_file(run / "model.safetensors").items()}


@pytest.mark.parametrize(
    "family", [f if f in ("llava", "qwen2_audio") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_dpo_begins_at_ln_2_and_its_folder_loads_with_the_auto_classes(family: str, tmp_path: Path, capsys) -> None:
    from transformers import AutoModelForMultimodalLM, AutoTokenizer

    from afzal.folders.load import load_processor

    given = place(tmp_path, family)
    out = recipes.train(config.make("dpo", **given | {"sample_prompts": 2}, out=str(tmp_path / "run"), sample_tokens=4))
    first = next(r for r in runs.read_jsonl(out / "metrics.jsonl") if "loss" in r)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    said = capsys.readouterr().err
    assert "media: with blank images and sounds, the log-prob of a response changes by" in said
    assert "does not use them" not in said
    assert type(AutoModelForMultimodalLM.from_pretrained(out)).__name__ == type(made(family)[0]).__name__
    assert AutoTokenizer.from_pretrained(out).chat_template == made(family)[1].chat_template
    assert load_processor(str(out)) is not None
    _the_page_shows_what_the_samples_are_about(out, FAMILIES[family][0])
    before, after = load_file(tmp_path / "model" / "model.safetensors"), load_file(out / "model.safetensors")
    moved = {n for n in before if not before[n].equal(after[n])}
    assert moved
    assert not [n for n in moved if "vision" in n or "visual" in n or "audio_tower" in n]


def _the_page_shows_what_the_samples_are_about(run: Path, kind: str) -> None:
    samples = list(runs.read_jsonl(run / "samples.jsonl"))
    shown = [m for s in samples for m in s.get("media", ())]
    page = (run / "report.html").read_text("utf-8")
    assert shown
    start = "<img src=" if kind == "image" else "<audio controls"
    assert page.count(start) == len({m["file"] for m in shown})
    assert ("media-src data:" in page) == (kind == "audio")
    asked = data.read(
        str(run / "samples.jsonl")
    ).items  # which reads and compares the bytes of the files that the rows name
    assert {m.path for item in asked for m in media_of(item)} == {str((run / m["file"]).resolve()) for m in shown}


def test_a_page_holds_previews_of_its_run_alone_and_not_too_many(tmp_path: Path, monkeypatch) -> None:
    from afzal.report import previews

    (tmp_path / "media").mkdir()
    names = [f"media/{c * 64}.jpg" for c in "abc"]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 100)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "media" / f"{'d' * 64}.jpg").symlink_to(tmp_path / "secret.jpg")
    wrong = ["secret.jpg", "media/../secret.jpg", f"media/{'d' * 64}.jpg", f"media/{'e' * 64}.jpg", 3, None]
    monkeypatch.setattr(previews, "_MOST_BYTES", 250)
    told = [[{"file": name} for name in names], [{"file": name} for name in wrong], "x", None, [None]]
    shown_by_case = previews.previews(told, tmp_path)
    assert [bool(shown["source"]) for shown in shown_by_case[0]] == [True, True, False]
    assert shown_by_case[1:] == [[], [], [], []]


def test_towers_train_when_asked_and_the_setting_is_refused_without_towers(tmp_path: Path) -> None:
    given = place(tmp_path, "llava")
    out = recipes.train(config.make("dpo", **given, out=str(tmp_path / "run"), train_towers=True, max_steps=1))
    before, after = load_file(tmp_path / "model" / "model.safetensors"), load_file(out / "model.safetensors")
    assert [n for n in before if "vision_tower" in n and not before[n].equal(after[n])]


def test_virtual_tokens_before_pictures_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    given = place(tmp_path, "llava", rows=4) | {"adapter": "prefix", "virtual_tokens": 2, "sample_prompts": 0}
    with pytest.raises(AfzalError, match="prompts with images or sounds cannot follow virtual tokens"):
        recipes.train(config.make("dpo", **given, out=str(tmp_path / "run")))


def test_a_stopped_run_resumes_to_the_same_bytes_and_a_cached_reference_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = place(tmp_path, "qwen2_vl") | {"sample_tokens": 4, "save_every_steps": 1}
    whole = recipes.train(config.make("dpo", **given, out=str(tmp_path / "whole")))
    cut = config.make("dpo", **given, out=str(tmp_path / "cut"))
    interrupt_after(monkeypatch, 3, "loss")
    with pytest.raises(KeyboardInterrupt):
        recipes.train(cut)
    monkeypatch.undo()
    resumed = recipes.train(cut, resume=True)
    assert weights(resumed) == weights(whole)
    cached = recipes.train(config.make("dpo", **given, out=str(tmp_path / "cached"), reference="cached"))
    assert weights(cached) == weights(whole)


@pytest.mark.parametrize("method", ["sft", "kto", "grpo"])
def test_other_methods_take_rows_with_media(method: str, tmp_path: Path) -> None:
    given = place(tmp_path, "llava") | {"max_steps": 1}
    given |= {"reward": "len_reward.py:longer", "n": 2, "sample_tokens": 4} if method == "grpo" else {}
    if method == "grpo":
        (tmp_path / "len_reward.py").write_text("def longer(prompt, answer):\n    return float(len(answer))\n")
        given["reward"] = f"{tmp_path / 'len_reward.py'}:longer"
    out = recipes.train(config.make(method, **given, out=str(tmp_path / "run")))
    assert runs.open_run(out).status() == "finished"


def test_check_shows_the_tokens_of_a_picture(tmp_path: Path) -> None:
    given = place(tmp_path, "llava")
    shown = display_tokens(data.read(given["data"]).items, given["model"], 1, 300)
    assert shown.n_trees == 8
    assert shown.markup.count("<image>") == 4  # of the one item that is shown


def test_answers_to_pictures_are_sampled_and_the_marks_of_pictures_never_are(tmp_path: Path) -> None:
    given = place(tmp_path, "llava")
    out = tmp_path / "answers.jsonl"
    settings = {"model": given["model"], "prompts": given["data"], "out": str(out), "n": 2, "max_new_tokens": 16}
    generate(config.GenerateConfig(**settings))
    rows = list(runs.read_jsonl(out))
    assert len(rows) == 2 * 8
    assert not any("<image>" in row["completion"] for row in rows)
    assert rows[0]["prompt"][0]["content"][0]["image"] == "0.png"
    elsewhere = tmp_path / "elsewhere" / "answers.jsonl"
    generate(config.GenerateConfig(**settings | {"out": str(elsewhere)}))
    shown = [[m.sha256 for m in media_of(item)] for item in data.read(str(elsewhere)).items]
    assert shown == [[m.sha256 for m in media_of(item)] for item in data.read(str(out)).items]
    again = tmp_path / "again.jsonl"
    generate(config.GenerateConfig(**settings | {"out": str(again)}))
    assert out.read_bytes() == again.read_bytes()
    with pytest.raises(AfzalError, match="vLLM receives only text"):
        generate(config.GenerateConfig(**settings | {"out": str(tmp_path / "v"), "engine": "vllm"}))
