"""What answers are worth: functions and reward models as one thing, and what is said when they cannot be had."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_runs import model_folder
from helpers_tokenizers import byte_tokenizer

from afzal.errors import AfzalError
from afzal.model.reward import load_reward_model, save_reward_model
from afzal.recipes.rewards import by_text, reward_source
from afzal.records import Message

SOURCE = """
def length(prompt, answer):
    return len(answer) - 0.5 * len(prompt)

def nothing(prompt, answer):
    return float("nan") if "no" in answer else 1.0

def broken(prompt, answer):
    return 1 / 0

number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards")
    (path / "mine.py").write_text(SOURCE)
    model_folder(path / "model")
    made = load_reward_model(str(path / "model"), heads=2)
    save_reward_model(made, byte_tokenizer(), path / "judge", shift=0.25)
    return path


def test_a_function_of_a_file_and_of_a_module(folder, monkeypatch):
    prompts, answers = ["ab", "abcd"], ["xyz", ""]
    assert reward_source(f"{folder}/mine.py:length")(prompts, answers) == [2.0, -2.0]
    monkeypatch.chdir(folder)
    assert reward_source("mine:length")(prompts, answers) == [2.0, -2.0]


def test_of_a_conversation_a_function_gets_the_words():
    asked = (Message("system", "Be brief."), Message("user", "Hi"))
    seen = []
    by_text(lambda prompt, answer: seen.append((prompt, answer)) or 0.0)([asked], ["yes"])
    assert seen == [("Be brief.\n\nHi", "yes")]


def test_a_reward_that_is_no_number_names_the_prompt_and_the_answer(folder):
    source = reward_source(f"{folder}/mine.py:nothing")
    assert source(["why"], ["yes"]) == [1.0]
    with pytest.raises(AfzalError, match=r"(?s)prompt 'why', answer 'no way'.*the reward is nan"):
        source(["why", "why"], ["yes", "no way"])
    with pytest.raises(AfzalError, match=r"(?s)prompt 'why', answer 'yes'.*ZeroDivisionError"):
        reward_source(f"{folder}/mine.py:broken")(["why"], ["yes"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mine.py:absent", "no function 'absent'"),
        ("mine.py:number", "no function 'number'"),
        ("other.py:f", "there is no file"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("./nowhere", "does not exist"),
    ],
)
def test_what_is_not_there_is_said_with_a_way_out(folder, monkeypatch, spec, said):
    monkeypatch.chdir(folder)
    with pytest.raises(AfzalError, match=f"(?s){said}.*try: "):
        reward_source(spec)


def test_a_language_model_is_no_reward_model(folder):
    with pytest.raises(AfzalError, match="is a language model, not a reward model"):
        reward_source(str(folder / "model"))


def test_a_reward_model_gives_its_mean_head_less_its_shift(folder):
    """Against the model itself, one answer at a time; an answer of nothing is its end mark."""
    prompts = ["why?", "why?", "how so?", "why?"]
    answers = [" yes", " because it is so", " no", ""]
    found = reward_source(str(folder / "judge"))(prompts, answers)
    model, tokenizer = load_reward_model(str(folder / "judge")), byte_tokenizer()
    assert found == pytest.approx(
        [_alone(model, tokenizer, p + a) - 0.25 for p, a in zip(prompts, answers, strict=True)], abs=1e-5
    )
    assert all(math.isfinite(x) for x in found)


def _alone(model, tokenizer, text: str) -> float:
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    seen = []
    hook = model.score.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    return float((seen[0][0, -1] @ model.score.weight.T).mean().detach())
