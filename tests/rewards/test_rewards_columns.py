"""Reward functions get the other columns that they ask for, wherever a row is known; two texts are still enough."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import fingerprint, model_folder, one_thread

import afzal
from afzal import config, data, recipes
from afzal.config import IterateConfig, Setting, build
from afzal.data import ColumnRequest, column_request
from afzal.errors import AfzalError
from afzal.iterate import iterate
from afzal.judging import judge_items, read_items
from afzal.prepare import prepare
from afzal.records import Item, Message
from afzal.rewards.functions import by_text
from afzal.tokens import distinct_prompts

FUNCTIONS = """
heard = []

def two(prompt, answer):
    return float(len(answer))

def keyed(prompt, answer, solution):
    heard.append((prompt, answer, solution))
    return float(len(answer)) + 10.0 * (prompt[:2] == solution[:2])

def all_of_them(prompt, answer, **columns):
    heard.append((prompt, answer, dict(columns)))
    return float(len(answer))

def as_in_trl(prompts, completions, solution, **kwargs):
    heard.append((list(prompts), list(completions), list(solution), kwargs))
    return [float(len(c)) + 10.0 * (p[:2] == s[:2]) for p, c, s in zip(prompts, completions, solution)]

def lacking(prompt, answer, nowhere):
    return 0.0

def cost(model, pi_logps, ref_logps, yw_idxs, yl_idxs, batch, level):
    import torch
    heard.append((list(level), [t.item_id for t, _ in batch.sources]))
    return (torch.tensor([float(x) for x in level]) * pi_logps).mean()
"""


# Columns that a function asks for


def test_what_a_function_asks_for_beyond_its_own_parameters():
    assert column_request(lambda prompt, answer: 0.0) == ColumnRequest()
    assert column_request(lambda prompt, answer, key, level=1: 0.0) == ColumnRequest(("key",), ("level",))
    assert column_request(lambda prompt, answer, *, key: 0.0).required == ("key",)
    assert column_request(lambda prompt, answer, **columns: 0.0).takes_all
    assert column_request(partial(lambda k, prompt, answer, key: 0.0, 1)).required == ("key",)
    assert not column_request(max).any  # written in C, without a signature
    trl = column_request(lambda completions, solution, **kwargs: [0.0])
    assert (trl.required, trl.takes_all, trl.takes_lists) == (("solution",), True, True)


def test_two_texts_stay_two_texts_whatever_the_rows_have():
    assert by_text(lambda prompt, answer: 1.0)(["p"], ["a"], None, [{"solution": "x"}]) == [1.0]


def test_a_column_is_that_of_the_answers_own_row():
    give = by_text(lambda prompt, answer, key: float(key))
    assert give(["p", "p", "q"], ["a", "b", "c"], None, [{"key": 1}, {"key": 2}, {"key": 3}]) == [1.0, 2.0, 3.0]


def test_a_default_stays_where_no_row_has_the_column():
    give = by_text(lambda prompt, answer, scale=2.0: scale)
    assert give(["p"], ["a"], None, [{"other": 1}]) == give(["p"], ["a"]) == [2.0]
    assert give(["p"], ["a"], None, [{"scale": 3.0}]) == [3.0]


def test_a_function_of_trl_gets_lists_by_name_and_messages_of_conversations():
    heard: list[Any] = []

    def reward(completions: Any, prompts: Any, solution: Any) -> list[float]:
        heard.append((completions, prompts, solution))
        return [1.0, 2.0]

    rows = [{"solution": "4", "level": 1}, {"solution": None, "level": 2}]
    assert by_text(reward)(["p", "q"], ["a", "b"], None, rows) == [1.0, 2.0]
    assert heard.pop() == (["a", "b"], ["p", "q"], ["4", None])
    chat = (Message("user", "2+2?"),)
    by_text(reward)([chat, chat], ["4", "5"], None, rows)
    completions, prompts, _ = heard.pop()
    assert prompts[0] == [{"role": "user", "content": "2+2?"}]
    assert completions[1] == [{"role": "assistant", "content": "5"}]
    with pytest.raises(AfzalError, match="1 rewards for 2 completions"):
        by_text(lambda completions, **kwargs: [1.0])(["p", "q"], ["a", "b"])


def test_a_parameter_that_no_row_has_is_named_with_the_columns_that_there_are():
    with pytest.raises(AfzalError, match="mine asks for nowhere") as caught:
        by_text(lambda prompt, answer, nowhere: 0.0, "mine")(["p"], ["a"], None, [{"solution": 1, "level": 2}])
    assert "level" not in str(caught.value)  # columns that it does not ask for are not passed
    with pytest.raises(AfzalError) as caught:
        column_request(lambda prompt, answer, nowhere: 0.0).refuse_missing(["solution", "level"], "mine", "rows.jsonl")
    assert "level, solution" in caught.value.why
    assert caught.value.where == "rows.jsonl"
    assert caught.value.remedy


# Rows


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows with an answer key, each prompt twice with different keys, and functions that ask for it."""
    model_folder(tmp_path / "model", hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    rows = [
        {"prompt": f"{k:02d} and {k}?", "solution": f"{k:02d}" + "x" * 300 * key, "level": k, "note": "n"}
        for k in range(12)
        for key in (0, 1)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def heard_by(world: Path) -> list[Any]:
    """What the functions of the file received; clears the record."""
    from afzal.objectives import load_function

    heard = load_function(f"{world}/functions.py:two").__globals__["heard"]
    told = list(heard)
    heard.clear()
    return told


def test_columns_that_are_asked_for_are_kept_whatever_their_size_and_name(world: Path):
    with pytest.raises(AfzalError, match="'solution' may change"):
        data.read("rows.jsonl")
    items = data.read("rows.jsonl", request=ColumnRequest(("solution",))).items
    assert items[1].extra["solution"] == "00" + "x" * 300
    (world / "gsm.jsonl").write_text('{"question": "2+2?", "answer": "4"}\n{"question": "1+2?", "answer": "3"}\n')
    assert [i.extra["answer"] for i in data.read("gsm.jsonl", request=ColumnRequest(("answer",))).items] == ["4", "3"]
    assert "answer" not in data.read("gsm.jsonl").items[0].extra


def test_one_prompt_with_two_keys_is_two_questions_where_the_key_is_asked_for():
    items = [Item(str(k), "p", (), extra={"key": k // 2, "id": k}) for k in range(4)]
    assert len(distinct_prompts(items)) == 1
    assert [item.extra["key"] for item in distinct_prompts(items, ["key"])] == [0, 1]


def made(world: Path, reward: str, method: str = "rloo", **more: Any) -> Any:
    given = {"model": "model", "data": "rows.jsonl", "out": str(world / f"run-{method}"), "batch_size": 4}
    given |= {"max_steps": 2, "sample_prompts": 2, "sample_tokens": 3, "eval_fraction": 0.2, "lr": 1e-3}
    given |= {"reward": f"functions.py:{reward}"} if reward else {}
    return config.make(method, **(given | {"n": 2} if method == "rloo" else given) | more)


@pytest.mark.parametrize("reward", ["keyed", "as_in_trl"])
def test_a_run_that_learns_from_rewards_gives_each_answer_the_key_of_its_row(world: Path, reward: str):
    prepared = prepare(made(world, reward))
    assert len(prepared.train) + len(prepared.evaluation) == 24  # with two texts 12
    with one_thread():
        recipes.train(made(world, reward))
    told = heard_by(world)
    if reward == "as_in_trl":
        assert set(told[0][3]) == {"level", "note"}  # its **kwargs get every other column
        told = [(p, c, s) for ps, cs, ss, _ in told for p, c, s in zip(ps, cs, ss, strict=True)]
    assert len(told) > 16
    assert all(prompt[:2] == solution[:2] for prompt, _, solution in told)
    assert len({solution for _, _, solution in told}) > 4


def test_other_columns_are_another_run(world: Path):
    with one_thread():
        given = made(world, "keyed", max_steps=1)
        out = recipes.train(given)
        assert len(json.loads((out / "run.json").read_text())["data"]["columns"]) == 64
        rows = (world / "rows.jsonl").read_text()
        (world / "rows.jsonl").write_text(rows.replace('"note": "n"', '"note": "m"'))
        recipes.train(given, resume=True)  # nothing reads the note
        (world / "rows.jsonl").write_text(rows.replace('"solution": "03"', '"solution": "04"'))
        with pytest.raises(AfzalError, match="columns") as caught:
            recipes.train(given, resume=True)
    assert "columns: the row fields that functions read has changed" in caught.value.why


LACKING = "functions.py:lacking"


def by_comparison(world: Path) -> Any:
    study = {"model": "model", "prompts": plain_prompts(world), "rewards": {"one": LACKING}, "seeds": [0]}
    return afzal.api.compare({**study, "methods": [{"name": "r", "run": "model"}]}, out="study", say=lambda line: None)


def by_judge(world: Path) -> Any:
    answered(world / "answers.jsonl")
    return afzal.api.judge("answers.jsonl", judge=LACKING, out="judged")


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "rloo": lambda world: recipes.train(made(world, "lacking", data_format="prompts")),
    "rounds": lambda world: iterate(rounds(reward=LACKING, data_format="prompts")),
    "comparison": by_comparison,
    "judge": by_judge,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_parameter_that_no_row_has_ends_every_command_before_it_begins(world: Path, name: str):
    with pytest.raises(AfzalError, match="lacking asks for nowhere, which no row has") as caught:
        COMMANDS[name](world)
    assert "their other columns are" in caught.value.why
    assert not (world / "run-rloo").exists()


def plain_prompts(world: Path) -> str:
    """A file of prompts with one other column."""
    lines = [{"prompt": f"{k:02d}?", "level": k, "note": f"{k:02d}"} for k in range(4)]
    (world / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "prompts.jsonl"


def answered(path: Path) -> None:
    rows = [{"prompt": f"{k}?", "chosen": "4 it is", "rejected": "no", "level": k, "note": "n"} for k in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rounds(**given: Any) -> IterateConfig:
    small = {"model": "model", "prompts": "rows.jsonl", "out": "rounds", "rounds": 1, "n": 2, "max_new_tokens": 3}
    small |= {"held_out": 3, "held_out_samples": 2, "batch_size": 4, "prompts_per_round": 4, "require_eos": False}
    return build(IterateConfig, [Setting(key, value) for key, value in (small | given).items()])


def test_rounds_give_both_rewards_the_key_of_the_row(world: Path):
    with one_thread():
        iterate(rounds(reward="functions.py:keyed", watch_reward="functions.py:all_of_them"))
    told = heard_by(world)
    keys = [(prompt, key["solution"] if isinstance(key, dict) else key) for prompt, _, key in told]
    assert all(prompt[:2] == key[:2] for prompt, key in keys)
    assert {type(key) for _, _, key in told} == {str, dict}


def test_comparisons_give_rewards_and_judges_the_columns_of_the_prompt(world: Path):
    (world / "functions.py").write_text(
        FUNCTIONS + "\n\ndef noted(prompt, answer, note):\n    assert prompt[:2] == note\n    return float(note)\n"
    )
    study = {"model": "model", "prompts": plain_prompts(world), "rewards": {"noted": "functions.py:noted"}}
    study |= {"seeds": [0], "methods": [{"name": "best", "best_of": [2]}], "judges": {"j": "functions.py:noted"}}
    study |= {"sample_tokens": 3, "samples": 2}
    report = afzal.api.compare(study, out="study", say=lambda line: None)
    rewards = json.dumps(report.body)
    assert '"noted"' in rewards


def test_judges_that_are_functions_read_the_columns_of_the_rows(world: Path):
    answered(world / "answers.jsonl")
    (world / "judge.py").write_text(
        "def right(prompt, answer, level):\n    return float(str(level + 4)[0] in answer)\n"
    )
    items = read_items("answers.jsonl", None, ["judge.py:right"])
    made = judge_items("judge.py:right", items, cache=world / "replies")
    assert [ruling.outcome for ruling in made.rulings] == ["first", "tie", "tie", "tie"]


def test_judges_of_two_files_read_the_columns_of_the_prompts(world: Path):
    prompts = [{"prompt": f"{k}?", "level": k} for k in range(3)]
    (world / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    for name, text in (("a", "right 5"), ("b", "wrong")):
        lines = [{"prompt": row["prompt"], "completion": text} for row in prompts]
        (world / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (world / "judge.py").write_text("def right(prompt, answer, level):\n    return float(str(level + 4) in answer)\n")
    with pytest.raises(AfzalError, match="asks for level"):
        read_items("a.jsonl", "b.jsonl", ["judge.py:right"])
    items = read_items("a.jsonl", "b.jsonl", ["judge.py:right"], "asked.jsonl")
    assert [item.extra["level"] for item in items] == [0, 1, 2]


PAIRS: dict[str, Any] = {"objective": "dpo", "constraint_bound": -99.0, "constraint_weight": 0.1}


@pytest.fixture
def pairs(world: Path) -> str:
    rows = [{"prompt": f"{k:02d}?", "chosen": "yes", "rejected": "no", "level": k} for k in range(10)]
    (world / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "pairs.jsonl"


def test_a_constraint_gets_a_value_for_each_response(world: Path, pairs: str):
    given = PAIRS | {"constraint": "functions.py:cost", "data": pairs}
    with one_thread():
        recipes.train(made(world, "", "prefer", **given))
    told = heard_by(world)
    of_item = {item.id: item.extra["level"] for item in data.read(pairs).items}
    assert all(levels == [of_item[name] for name in names] for levels, names in told)
    assert any(len(set(levels)) > 1 for levels, _ in told)


def test_a_score_of_answers_as_a_constraint_gets_the_column_of_the_prompt(world: Path, pairs: str):
    (world / "score.py").write_text(
        "heard = []\n\n\ndef bad(prompt, answer, level):\n    heard.append((prompt, level))\n    return float(level)\n"
    )
    given = PAIRS | {"constraint": "black_box", "constraint_score": "score.py:bad", "data": pairs}
    with one_thread():
        recipes.train(made(world, "", "prefer", **given))
    from afzal.objectives import load_function

    told = load_function("score.py:bad").__globals__["heard"]
    assert told
    assert all(int(prompt[:2]) == level for prompt, level in told)


def test_callables_of_python_ask_for_columns_too(world: Path):
    heard = []

    def keyed(prompt: str, answer: str, solution: str) -> float:
        heard.append((prompt[:2], solution[:2]))
        return float(len(answer))

    rows = [json.loads(line) for line in (world / "rows.jsonl").read_text().splitlines()]
    small: dict[str, Any] = {"batch_size": 4, "max_steps": 1, "n": 2, "sample_tokens": 3, "sample_prompts": 0}
    afzal.fit("rloo", model="model", data=rows, reward=keyed, out="fitted", **small)
    assert heard
    assert all(a == b for a, b in heard)


def test_a_function_of_two_texts_leaves_a_run_as_it_was(world: Path):
    """A default that no column fills changes neither the prompts nor a byte of what is trained."""
    (world / "functions.py").write_text(
        FUNCTIONS + "\n\ndef scaled(prompt, answer, scale=1.0):\n    return scale * float(len(answer))\n"
    )
    short = {"data_format": "prompts", "max_steps": 1, "sample_prompts": 0}
    with one_thread():
        plain = recipes.train(made(world, "two", out="plain", **short))
        scaled = recipes.train(made(world, "scaled", out="scaled", **short))
    assert fingerprint(plain) == fingerprint(scaled)
    assert "columns" not in json.loads((scaled / "run.json").read_text())["data"]
