"""Files outside the run that settings name: which ones are hashed, and the refusal to resume after a change."""

from __future__ import annotations

import hashlib

import pytest
from helpers_runs import settings

from afzal import config, recipes, runs
from afzal.errors import AfzalError
from afzal.recipes.input_hashes import input_hashes

REWARD = "def letters(prompt, answer):\n    return len(answer) - {}\n"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_and_folders_are_hashed_by_setting_and_words_and_the_data_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.jsonl", "held.jsonl", "loss.py", "cost.py", "chat.jinja"):
        (tmp_path / name).write_text(name)
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "notes.txt", "run.json"):
        (tmp_path / "model" / name).write_text(name)
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
    model = {name: digest(tmp_path / "model" / name) for name in ("config.json", "model.safetensors", "tokenizer.json")}
    files = {key: digest(tmp_path / name) for key, name in expected.items()}
    assert input_hashes(made) == {"model": model, **files}
    template = made.model_copy(update={"chat_template": "{% for message in messages %}" + "x" * 5000})
    assert "chat_template" not in input_hashes(template)  # a text may be longer than any path


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
    assert run.facts()["files"][key] == digest(path)
    path.write_text(REWARD.format(2))
    with pytest.raises(AfzalError, match=f"(?s)cannot be resumed.*{key}: the content of its file.*try: restore"):
        recipes.train(made, resume=True)
    path.write_text(REWARD.format(1))
    recipes.train(made, resume=True)
    assert run.facts()["files"][key] == digest(path)
    run.update(files={})  # a run from before files were recorded resumes
    path.write_text(REWARD.format(2))
    recipes.train(made, resume=True)
