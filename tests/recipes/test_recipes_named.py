"""What settings name outside the run: which files are hashed, and that a changed one is refused on resume."""

from __future__ import annotations

import hashlib

import pytest
from helpers_runs import settings

from afzal import config, recipes, runs
from afzal.errors import AfzalError
from afzal.recipes.named import file_hashes

REWARD = "def letters(prompt, answer):\n    return len(answer) - {}\n"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_are_hashed_by_setting_and_folders_words_and_the_data_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.jsonl", "held.jsonl", "loss.py", "cost.py", "chat.jinja"):
        (tmp_path / name).write_text(name)
    (tmp_path / "model").mkdir()
    made = config.make(
        "prefer",
        model="model",
        data="pairs.jsonl",
        eval_data="held.jsonl",
        objective="0.5*dpo + 2*loss.py:f",
        constraint="cost:f",
        constraint_weight=1.0,
        chat_template="chat.jinja",
    )
    expected = {
        "eval_data": "held.jsonl",
        "objective": "loss.py",
        "constraint": "cost.py",
        "chat_template": "chat.jinja",
    }
    assert file_hashes(made) == {key: digest(tmp_path / name) for key, name in expected.items()}
    template = made.model_copy(update={"chat_template": "{% for message in messages %}" + "x" * 5000})
    assert "chat_template" not in file_hashes(template)  # a text may be longer than any path


@pytest.mark.parametrize("method", ["rloo", "prefer"])
def test_a_changed_file_is_refused_by_name_on_resume_and_the_same_content_is_not(tmp_path, method):
    path = tmp_path / "own.py"
    path.write_text(REWARD.format(1))
    given = settings(tmp_path, tmp_path / "run", max_steps=2, epochs=1.0, sample_prompts=0)
    if method == "rloo":
        key, extra = "reward", {"reward": f"{path}:letters", "iterations": 2, "max_steps": None}
    else:
        extra = {"constraint": "black_box", "constraint_score": f"{path}:letters", "constraint_weight": 1.0}
        key = "constraint_score"
    made = config.make(method, **(given | extra))
    recipes.train(made)
    run = runs.open_run(tmp_path / "run")
    assert run.facts()["files"] == {key: digest(path)}
    path.write_text(REWARD.format(2))
    with pytest.raises(AfzalError, match=f"(?s)cannot be resumed.*{key}: the content of its file.*try: put"):
        recipes.train(made, resume=True)
    path.write_text(REWARD.format(1))
    recipes.train(made, resume=True)
    facts = run.facts()
    run.update(files={})  # a run of before files were written down goes on
    assert facts["files"] == {key: digest(path)}
    path.write_text(REWARD.format(2))
    recipes.train(made, resume=True)
