"""Prompts with images, answered by a server: they are sent as messages, and real servers answer what they see."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model_server import serving
from helpers_multimodal import made, picture
from helpers_scripted_server import scripted, server_file, wait_for_nothing

from afzal import data
from afzal.config import GenerateConfig
from afzal.errors import AfzalError
from afzal.generate.run import generate
from afzal.records import media_of

pytest.importorskip("PIL", reason="needs the extra vision")

PICTURES = picture(0), picture(2)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    wait_for_nothing(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that sees, and three prompts: two images under one text, and a text alone."""
    path = tmp_path_factory.mktemp("seeing")
    model, processor = made("llava")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and ("v_proj" in name or "o_proj" in name):
                weight.mul_(8)  # so that what it sees changes its answers
    model.save_pretrained(path / "model")
    processor.save_pretrained(path / "model")
    (path / "in").mkdir()
    rows = []
    for k in range(2):
        (path / f"in/{k}.png").write_bytes(PICTURES[k])
        shown = [{"type": "image", "path": f"{k}.png"}, {"type": "text", "text": "What is this?"}]
        rows.append({"prompt": [{"role": "user", "content": shown}]})
    rows.append({"prompt": [{"role": "user", "content": "What is this?"}]})
    (path / "in/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(model: str, folder: Path, out: Path, **given: Any) -> list[dict[str, Any]]:
    prompts = str(folder / "in/prompts.jsonl")
    generate(GenerateConfig(model=model, prompts=prompts, out=str(out), **{"n": 2, "max_new_tokens": 8} | given))
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("named", [True, False])
def test_an_image_is_sent_at_its_place_and_its_answer_names_a_copy(folder, tmp_path, named):
    with scripted() as script:
        known = {"folder": str(folder / "model")} if named else {}
        rows = answers(server_file(tmp_path / "s.yaml", script, **known), folder, tmp_path / "out/answers.jsonl")
    contents = [body["messages"][0]["content"] for body in script.bodies]
    shown = [content for content in contents if not isinstance(content, str)]
    assert [content for content in contents if isinstance(content, str)] == ["What is this?"] * 2
    assert {len(content) for content in shown} == {2}
    assert all(content[1] == {"type": "text", "text": "What is this?"} for content in shown)
    sent = [
        base64.b64decode(content[0]["image_url"]["url"].removeprefix("data:image/png;base64,")) for content in shown
    ]
    assert sorted(sent) == sorted([*PICTURES, *PICTURES])
    items = data.read(str(tmp_path / "out/answers.jsonl")).items
    assert [[m.read() for m in media_of(item)] for item in items[::2]] == [[PICTURES[0]], [PICTURES[1]], []]
    assert rows[0]["prompt"][0]["content"][0]["image"].startswith("media/")


def test_token_ids_hold_no_image(folder, tmp_path):
    with scripted() as script:
        server = server_file(tmp_path / "s.yaml", script, kind="vllm", folder=str(folder / "model"))
        with pytest.raises(AfzalError, match="is sent token ids, and prompt 0 has images or sounds") as error:
            answers(server, folder, tmp_path / "answers.jsonl")
    assert error.value.why == "2 of 3 prompts have some"
    assert "kind: openai" in error.value.remedy
    assert not script.seen


def test_a_server_that_reads_the_image_as_other_tokens_is_refused(folder, tmp_path):
    with scripted() as script:
        script.prompt_tokens = 3
        server = server_file(tmp_path / "s.yaml", script, folder=str(folder / "model"))
        with pytest.raises(AfzalError, match="the server reads prompt 0 as 3 tokens"):
            answers(server, folder, tmp_path / "answers.jsonl")


@pytest.mark.slow
def test_transformers_serve_sees_what_our_engine_sees(folder, tmp_path):
    """Greedy texts are equal, prompt by prompt, and differ between two images under one text."""
    greedy = {"n": 1, "temperature": 0.0}
    ours = answers(str(folder / "model"), folder, tmp_path / "ours.jsonl", **greedy)
    with serving(folder / "model") as (url, _):
        known = {"kind": "transformers", "model": str(folder / "model"), "folder": str(folder / "model")}
        served = answers(server_file(tmp_path / "s.yaml", url, **known), folder, tmp_path / "served.jsonl", **greedy)
    assert served == ours
    assert len({row["completion"] for row in ours}) == 3
