"""Comparisons on prompts with images: what is measured, when it is measured again, and what judges read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_multimodal import made, picture
from helpers_scripted_server import scripted, server_file

from afzal import api, config, data
from afzal.compare.measure import set_up
from afzal.records import media_of

pytest.importorskip("PIL", reason="needs the extra vision")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads images, pairs on six prompts of which two show none, and a reward."""
    folder = tmp_path_factory.mktemp("compare-media")
    model, processor = made("llava")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = []
    for k in range(6):
        (folder / f"{k}.png").write_bytes(picture(k))
        row = {"prompt": f"Say {k}."} if k % 3 == 2 else {"prompt": f"<image>What is {k}?", "images": [f"{k}.png"]}
        rows.append({**row, "chosen": f"good {k}", "rejected": f"bad, {k}"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text("def letters(prompt, answer):\n    return sum(c.isalpha() for c in answer)\n")
    return folder


def settings(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(place / "model"),
        "data": str(place / "pairs.jsonl"),
        "prompts": str(place / "pairs.jsonl"),
        "rewards": {"letters": f"{place / 'rewards.py'}:letters"},
        "methods": [
            {"name": "dpo", "train": "dpo", "max_steps": 2, "lr": 1e-3, "eval_fraction": 0.0},
            {"name": "best", "best_of": [2]},
        ],
        "judges": {"short": "rule:shortest"},
        "out": str(out),
        "samples": 2,
        "sample_tokens": 5,
        "max_tokens": 300,
        "device": "cpu",
        **changes,
    }


def built(place: Path, out: Path, **changes: Any) -> config.CompareConfig:
    pairs = settings(place, out, **changes).items()
    return config.build(config.CompareConfig, [config.Setting(k, v) for k, v in pairs])


@pytest.fixture(scope="module")
def compared(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    api.compare(settings(place, out))
    return out


def test_policies_are_measured_on_prompts_with_images(compared: Path) -> None:

    body = json.loads((compared / "compare.json").read_text())
    assert body["prompts"] == 6
    assert [row["prompt"].startswith("<image>") for row in body["samples"]][:3] == [True, True, False]
    measured = [json.loads(path.read_text()) for path in compared.glob("measured/dpo-*.json")]
    assert len(measured) == len(body["seeds"])
    for kept in measured:
        assert [len(row) for row in kept["kl"]] == [2] * 6
        assert all(value > 0 for row in kept["kl"] for value in row)


def test_pairs_of_judges_hold_the_images(compared: Path, place: Path) -> None:
    known = {m.sha256 for item in data.read(str(place / "pairs.jsonl")).items for m in media_of(item)}
    items = data.read(str(compared / "judged" / "pairs.jsonl")).items
    assert {m.sha256 for item in items for m in media_of(item)} == known


def test_another_image_under_the_same_name_is_measured_again(place: Path, tmp_path: Path) -> None:
    before = set_up(built(place, tmp_path)).key
    assert set_up(built(place, tmp_path)).key == before
    content = (place / "0.png").read_bytes()
    (place / "0.png").write_bytes(picture(99))
    after = set_up(built(place, tmp_path)).key
    (place / "0.png").write_bytes(content)
    assert after != before


def test_a_server_answers_prompts_with_images(place: Path, tmp_path: Path) -> None:
    """The texts are the server's; their KL to the start is zero for the start's own weights, whatever it sees."""
    with scripted() as script:
        given = {"methods": [{"name": "best", "best_of": [2]}], "judges": None, "data": None}
        server = server_file(tmp_path / "server.yaml", script)
        api.compare(
            {k: v for k, v in settings(place, tmp_path / "out", generator=server, **given).items() if v is not None}
        )
    shown = [body for body in script.bodies if not isinstance(body["messages"][0]["content"], str)]
    assert len({body["messages"][0]["content"][0]["image_url"]["url"] for body in shown}) == 4
    assert all(body["messages"][0]["content"][0]["type"] == "image_url" for body in shown)
    measured = tmp_path / "out/measured/start-0.json"
    measurement = json.loads(measured.read_text())
    assert all(text.startswith("said ") for row in measurement["texts"] for text in row)
    assert measurement["kl"] == [[0.0] * 2] * 6
