"""Costs as the settings name them: their tokens, texts and functions, what they count, and what they are given."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import make, random_trees
from helpers_tokenizers import byte_tokenizer, word_tokenizer

from afzal import config
from afzal.errors import AfzalError
from afzal.generate import Sample, Sampling
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.recipes import constraints as module
from afzal.tokens import Speaker
from afzal.tokens.batch import Batch, collate
from afzal.tokens.tree import tree
from afzal.train.constraints import Constraint
from afzal.train.feed import Layout

EOS = 258


def constraint(tokenizer: Any = None, **given: Any) -> Constraint:
    speaker = Speaker(tokenizer or byte_tokenizer())
    settings: Any = config.make("prefer", model="m", data="d", out="o", **{"constraint_weight": 1.0, **given})
    prepared: Any = SimpleNamespace(
        speaker=speaker, tokenizer=speaker.tokenizer, max_tokens=20, longest_response=3, ends=[EOS]
    )
    (made,) = module.constraint_of(settings, prepared, Layout("shared", 100))
    return made


def call(cost: Any, model: Any, batch: Batch) -> torch.Tensor:
    pi = score(model, batch).logps
    index = batch.preferences[:, :2].long()
    return cost(model, pi, pi.detach(), index[:, 0], index[:, 1], batch)


@pytest.fixture
def model() -> Any:
    made = make("llama", vocab_size=259)
    choose_sharing(made)
    return made


def test_tokens_are_named_as_the_model_spells_them(model):
    """Without the BOS that the tokenizer puts before a text; each token counts once."""
    batch = collate(random_trees(3), "shared")
    made = constraint(byte_tokenizer(add_bos=True), constraint="unsafe_mass", constraint_tokens=["a", "b", "a"])
    torch.testing.assert_close(call(made.cost, model, batch), call(module.unsafe_mass([97, 98]), model, batch))
    assert (made.name, made.bound, made.weight, made.dual_lr) == ("unsafe_mass", 0.0, 1.0, None)
    assert made.counts(batch) == float(batch.scored.sum())
    with pytest.raises(AfzalError, match="'ab' is 2 tokens of this model, not one"):
        constraint(constraint="unsafe_mass", constraint_tokens=["a", "ab"])
    dual = constraint(
        constraint="unsafe_mass",
        constraint_tokens=["a"],
        constraint_bound=0.25,
        constraint_weight=None,
        constraint_dual_lr=0.5,
    )
    assert (dual.bound, dual.weight, dual.dual_lr) == (0.25, None, 0.5)


def test_each_update_takes_the_next_completions_in_turn(model):
    trees = [tree(f"u{k}", [3, 4], [[5 + k, 6]]) for k in range(40)]
    batch = collate(random_trees(2), "shared")
    cost = module.unsafe_likelihood(trees, Layout("shared", 30))
    with torch.no_grad():
        each = torch.stack([score(model, collate([t], "shared")).mean_logps.exp()[0] for t in trees])
        for update, taken in ((0, range(32)), (1, [*range(32, 40), *range(24)]), (5, range(32))):
            value = call(cost, model, replace(batch, update=update))
            torch.testing.assert_close(value, each[list(taken)].mean(), msg=str(update))
        few = module.unsafe_likelihood(trees[:3], Layout("shared", 30))
        for update in (0, 1):
            torch.testing.assert_close(call(few, model, replace(batch, update=update)), each[:3].mean())


def test_completions_are_read_from_a_file_one_tree_each(tmp_path, model):
    rows = [{"prompt": "a", "completion": "bc"}, {"prompt": "d", "completion": "e"}]
    source = tmp_path / "bad.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = constraint(constraint="unsafe_likelihood", constraint_data=str(source))
    batch = collate(random_trees(2), "shared")
    trees = [tree("0", [97], [[98, 99, EOS]]), tree("1", [100], [[101, EOS]])]
    expected = score(model, collate(trees, "shared")).mean_logps.exp().mean()
    torch.testing.assert_close(call(made.cost, model, batch), expected)
    assert made.counts(batch) == batch.n_responses
    unable = word_tokenizer(["a"])  # it can spell none of them
    with pytest.raises(AfzalError, match="no completion could be read"):
        constraint(unable, constraint="unsafe_likelihood", constraint_data=str(source))


USER = """
def plain(model, pi, ref, yw, yl, batch):
    return pi.mean()

def counted(model, pi, ref, yw, yl, batch, worth):
    seen.append(worth)
    return pi.mean()

counted.counts = lambda batch: 7.0
seen = []
"""


def test_a_users_cost_is_given_the_columns_it_names(tmp_path, model, monkeypatch):
    (tmp_path / "my_costs.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    made = constraint(constraint="my_costs.py:counted")
    trees = [replace(t, columns={"worth": k, "other": 9}) for k, t in enumerate(random_trees(3))]
    batch = collate(trees, "shared")
    value = call(made.cost, model, batch)
    torch.testing.assert_close(value, score(model, batch).logps.mean())
    seen = made.cost.__wrapped__.__globals__["seen"]  # pyright: ignore[reportFunctionMemberAccess]
    assert seen == [[0, 0, 1, 1, 2, 2]]  # one per response
    assert (made.name, made.counts(batch)) == ("counted", 7.0)
    other = constraint(constraint="my_costs.py:plain")
    assert not hasattr(other.cost, "__wrapped__")
    assert other.counts(batch) == batch.n_responses


def test_a_scorer_reads_the_answer_without_its_end_and_its_row():
    speaker = Speaker(byte_tokenizer(add_bos=True))
    trees = [
        replace(tree(f"i{k}", [257, *text], [[1]]), columns={"worth": k}) for k, text in enumerate((b"one", b"two"))
    ]
    seen: list[Any] = []

    def judged(prompt: str, answer: str, columns: Any) -> float:
        seen.append((prompt, answer, dict(columns)))
        return 0.5

    ended = Sample(1, np.array([97, 98, EOS]), "eos", np.zeros(3))
    cut = Sample(0, np.array([32, 99]), "length", np.zeros(2))
    assert [module._score_sample(judged, speaker, trees, s) for s in (ended, cut)] == [0.5, 0.5]
    assert seen == [("two", "ab", {"worth": 1}), ("one", " c", {"worth": 0})]


def test_a_black_box_is_asked_about_four_answers_to_each_prompt(tmp_path, model, monkeypatch):
    (tmp_path / "my_score.py").write_text("def worse(prompt, answer):\n    return len(answer)\n")
    monkeypatch.chdir(tmp_path)
    drawn: list[Any] = []
    real = module.sample
    monkeypatch.setattr(module, "sample", lambda *a, **k: (drawn.append((a, k)), real(*a, **k))[1])
    batch = collate([tree(f"i{k}", [65, 66 + k], [[70], [71, 72]]) for k in range(3)], "shared")
    made = constraint(constraint="black_box", constraint_score="my_score.py:worse")
    value = call(made.cost, model, batch)
    ((_, trees), asked) = drawn[0]
    assert [t.item_id for t in trees] == ["i0", "i1", "i2"]  # each prompt once, however many responses it has
    assert made.counts(batch) == 3.0
    assert (asked["n"], asked["eos"], asked["sampling"]) == (4, [EOS], Sampling(3, 1.0))
    samples = real(model, trees, **asked)
    texts = [made_text(s) for s in samples]
    assert float(value.detach()) == pytest.approx(sum(map(len, texts)) / 12)
    longer = constraint(constraint="black_box", constraint_score="my_score.py:worse", sample_tokens=5)
    call(longer.cost, model, batch)
    assert drawn[-1][1]["sampling"] == Sampling(5, 1.0)
    # the draws depend on the item and the update alone
    alone = collate([tree("i1", [65, 67], [[70]])], "shared")
    call(made.cost, model, alone)
    assert drawn[-1][1]["numbers"] == asked["numbers"][1:2]
    assert drawn[-1][1]["seed"] == asked["seed"]
    call(made.cost, model, replace(alone, update=1))
    assert drawn[-1][1]["seed"] != asked["seed"]


def made_text(drawn: Sample) -> str:
    return str(byte_tokenizer().decode(drawn.answer.tolist()))


def test_numbers_of_words_are_fixed_and_below_2_to_56():
    assert module._number("update 0") == 8280314685740769
    assert all(0 <= module._number(str(k)) < 2**56 for k in range(200))
    assert max(module._number(str(k)) for k in range(200)) > 2**55
