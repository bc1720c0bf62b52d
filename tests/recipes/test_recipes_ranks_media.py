"""Several ranks give the same results as one if only some rows have images or sounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_ranks import run_ranks
from helpers_runs import command_line, finished, start_command
from test_recipes_media import place
from test_recipes_ranks import assert_same, metrics

from afzal.train import checkpoint

pytest.importorskip("PIL", reason="needs the extra vision")
pytest.importorskip("soundfile", reason="needs the extra audio")

SETTINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "lora": {"adapter": "lora"},
    "towers": {},
    "reward": {},
    "mdpo": {"objective": "mdpo"},
}
METHODS = {"reward": "reward", "mdpo": "prefer"}
FLAGS = {"towers": ["--train-towers"]}
FAST = {("llava", "all")}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, marks=() if (family, name) in FAST else pytest.mark.slow)
        for family in ("llava", "qwen2_audio", "qwen2_vl")
        for name in SETTINGS
    ],
)
def test_two_ranks_are_one_where_only_some_rows_have_media(family: str, name: str, tmp_path: Path) -> None:
    """In updates of two items a rank reads a text while the other one reads a picture, or both read texts."""
    method = METHODS.get(name, "dpo")
    given = (
        place(tmp_path, family, rows=12, every=2) | {"adam_eps": 1e-4, "lr": 3e-4, "sample_tokens": 4} | SETTINGS[name]
    )
    if method == "reward":
        given = {key: value for key, value in given.items() if not key.startswith("sample")}
    one, two = (
        command_line(method, given | {"out": str(tmp_path / out)}, *FLAGS.get(name, [])) for out in ("one", "two")
    )
    assert finished(start_command(one)) == 0
    assert run_ranks(two, 2) == [0, 0]
    assert len(metrics(tmp_path / "one")) > 8
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_ppo_of_two_ranks_is_one(tmp_path: Path) -> None:
    """Ranks write different numbers of answers, by `generate`, which must not wait for the other rank."""
    given = place(tmp_path, "llava", rows=12, every=2) | {"adam_eps": 1e-4, "lr": 3e-4, "sample_tokens": 4}
    (tmp_path / "rewards.py").write_text("def letters(prompt, answer):\n    return sum(c.isalpha() for c in answer)\n")
    given |= {
        "reward": f"{tmp_path / 'rewards.py'}:letters",
        "iterations": 4,
        "n": 1,
        "sample_prompts": 0,
        "save_every_steps": 1,
        "keep_checkpoints": 20,
    }
    one, two = (command_line("ppo", given | {"out": str(tmp_path / out)}) for out in ("one", "two"))
    assert finished(start_command(one)) == 0
    assert run_ranks(two, 2) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")
    one, two = (values_of(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert any("projector" in name for name in one)
    assert all((one[name] - two[name]).abs().max() <= 1e-6 for name in one)


def values_of(run: Path) -> dict[str, Any]:
    """The value model's weights in the run's last checkpoint."""
    _, newest = checkpoint.listed(run / "checkpoints")[-1]
    return {name: t for name, t in checkpoint.read(newest, "model").items() if name.startswith("value/")}
