"""Sweeps over trainings on images: which held-out prompts are training prompts too."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers_multimodal import picture

from afzal.sweep.run import count_training_prompts

pytest.importorskip("PIL", reason="needs the extra vision")


def test_a_prompt_is_its_text_and_its_image(tmp_path: Path) -> None:
    """Of three held-out prompts one is trained on: another has the same text with another image."""
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(picture(k))

    def write(name: str, rows: list[tuple[str, int]]) -> str:
        answers = {"chosen": "a", "rejected": "b"}
        lines = [json.dumps({"prompt": f"<image>{text}", "images": [f"{k}.png"], **answers}) for text, k in rows]
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    train = write("train.jsonl", [("What?", 0), ("Who?", 1)])
    held_out = write("held-out.jsonl", [("What?", 0), ("What?", 2), ("Where?", 0)])
    base = SimpleNamespace(data=train, columns=None, data_format=None)
    evaluator = SimpleNamespace(config=SimpleNamespace(prompts=held_out))
    search = SimpleNamespace(
        config=SimpleNamespace(confirm_prompts=None), plan=SimpleNamespace(base=base), evaluator=evaluator
    )
    assert count_training_prompts(search) == {"prompts": 1}
