"""What a policy is measured against: which model is taken, what is copied, and what does not fit it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_models import make
from helpers_runs import model_folder
from helpers_tokenizers import byte_tokenizer

from afzal import config
from afzal.errors import AfzalError
from afzal.model.adapters import Adapter, add_adapter
from afzal.model.load import load_model
from afzal.model.probe import choose_sharing
from afzal.model.reference import AdapterOff, Cached, Frozen, Offloaded, StartingAdapter
from afzal.recipes import memory, references
from afzal.records import Preference
from afzal.tokens.batch import collate
from afzal.tokens.tree import Tree, tree
from afzal.train.feed import Layout
from afzal.train.precision import Weights

CPU = torch.device("cpu")


def given(method: str = "dpo", **changes: Any) -> Any:
    return config.make(method, model="m", data="d", out="o", **changes)


def pair(name: str, prompt: int, *answers: int) -> Tree:
    """A prompt and answers of so many tokens."""
    return tree(name, [7] * prompt, [[9] * n for n in answers], pairs=[Preference(0, 1)] if len(answers) > 1 else [])


def prepared(**changes: Any) -> Any:
    """Prepared data; by default the longest rows are those named by the tests below."""
    base = {
        "train": [pair("a", 10, 5, 3)],
        "evaluation": [pair("b", 12, 2, 2)],
        "train_mismatched": [],
        "evaluation_mismatched": [],
        "longest_response": 5,
        "max_tokens": 100,
        "tokenizer": byte_tokenizer(),
        "recipe": SimpleNamespace(shows_pieces=False),
    }
    return SimpleNamespace(**base | changes)


def adapted(family: str = "llama") -> Any:
    model = make(family)
    model.requires_grad_(False)
    return add_adapter(model, Adapter("lora", rank=2))


# ---------------------------------------------------------------- the longest row


@pytest.mark.parametrize(
    ("settings", "changes", "longest"),
    [
        ({}, {}, 17),  # an answer as long as the longest of the data, to the longest prompt
        ({"sample_tokens": 20}, {}, 32),
        ({"sample_tokens": 1}, {}, 15),  # the longest row of the data
        ({"sample_tokens": 1}, {"evaluation": [pair("b", 12, 2, 9)]}, 21),  # its longest answer, whichever it is
        ({"sample_tokens": 1}, {"train_mismatched": [pair("c", 3, 30)]}, 33),
        ({"sample_tokens": 1}, {"evaluation_mismatched": [pair("c", 3, 40)]}, 43),
        ({"sample_tokens": 5}, {"train_mismatched": [pair("c", 40, 2)]}, 42),  # nobody answers such a prompt
        ({}, {"train": [], "evaluation": [], "longest_response": 0}, 0),
    ],
)
def test_the_longest_row_is_of_the_data_or_written(settings, changes, longest):
    assert references.longest_row(given(**settings), prepared(**changes)) == longest


def test_rows_of_a_constraint_may_be_as_long_as_the_limit():
    known = {"constraint": "unsafe_likelihood", "constraint_data": "bad.jsonl"}
    held = {"constraint_bound": 0.1, "constraint_weight": 1.0}
    assert references.longest_row(given("prefer", **known, **held), prepared()) == 100
    other = {"constraint": "unsafe_mass", "constraint_tokens": ["a"]}
    assert references.longest_row(given("prefer", **other, **held), prepared()) == 17


def test_a_reward_model_writes_nothing():
    assert references.longest_row(given("reward"), prepared()) == 15


# ---------------------------------------------------------------- the start of the policy


def test_the_start_is_only_kept_if_something_is_compared_with_it():
    weights = Weights(make("llama"), "fp32")
    start = lambda c, **changes: references.start_of(c, weights, prepared(**changes), None, CPU)  # noqa: E731
    assert isinstance(start(given()), Frozen)
    assert start(given(), evaluation=[]) is None
    assert start(given(sample_prompts=0)) is None
    assert start(given("reward")) is None  # it is no policy
    assert start(given("rloo", reward="r")) is None  # it writes against its reference
    moving = given(sample_prompts=0, reference_sync_steps=2)
    assert isinstance(start(moving), Frozen)


def test_the_start_is_the_reference_if_that_stays_the_start():
    model = make("llama")
    weights, reference = Weights(model, "fp32"), Frozen(make("llama", seed=1))

    def start(reference: Any, **settings: Any) -> Any:
        return references.start_of(given(**settings), weights, prepared(), reference, CPU)

    assert start(reference) is reference
    for other in (Frozen(make("llama"), "another model", is_start=False), Cached({}), None):
        copy = start(other)
        assert isinstance(copy, Frozen)
        assert copy.model is not model
        assert not any(p.requires_grad for p in copy.model.parameters())
    moved = start(reference, reference_sync_steps=2)
    assert isinstance(moved, Frozen)
    assert moved is not reference
    torch.testing.assert_close(dict(moved.model.named_parameters()), dict(model.named_parameters()))


def test_the_start_of_an_adapter_is_a_state_of_the_same_model():
    weights = Weights(adapted(), "fp32")
    assert isinstance(references.start_of(given(lora_rank=2), weights, prepared(), None, CPU), AdapterOff)
    assert isinstance(references.start_of(given(), weights, prepared(), None, CPU), StartingAdapter)


def test_the_start_is_kept_in_host_memory_if_the_device_has_its_own(monkeypatch):
    weights = Weights(make("llama"), "fp32")
    assert not isinstance(references.start_of(given(), weights, prepared(), None, CPU), Offloaded)
    monkeypatch.setattr(memory, "shares_memory", lambda device: False)
    assert isinstance(references.start_of(given(), weights, prepared(), None, CPU), Offloaded)


# ---------------------------------------------------------------- the reference


def reference(
    c: Any, model: Any, folder: Path = Path(), sharing: Any = "shared", dtype: Any = "fp32", **changes: Any
) -> Any:
    choose_sharing(model)
    run: Any = SimpleNamespace(path=folder)
    return references.reference_of(c, Weights(model, dtype), prepared(**changes), Layout(sharing, 64), run)


def test_the_reference_is_a_copy_or_a_state_of_the_policy():
    full = make("llama")
    copy = reference(given(), full)
    assert isinstance(copy, Frozen)
    assert copy.model is not full
    assert isinstance(reference(given(lora_rank=2), adapted()), AdapterOff)
    assert isinstance(reference(given(lora_rank=2, reference="adapter_off"), adapted()), AdapterOff)
    assert isinstance(reference(given(), adapted()), StartingAdapter)
    moving = reference(given(reference_sync_steps=3), adapted())
    assert type(moving) is Frozen  # which can be moved


def test_on_several_ranks_the_reference_and_the_start_are_copies_as_shards_cannot_be_swapped(monkeypatch):
    monkeypatch.setattr(references.ranks, "world", lambda: 2)
    assert type(reference(given(), make("llama"))) is Frozen
    assert type(reference(given(), adapted())) is Frozen
    assert isinstance(reference(given(lora_rank=2), adapted()), AdapterOff)
    start = lambda c: references.start_of(c, Weights(adapted(), "fp32"), prepared(), None, CPU)  # noqa: E731
    assert type(start(given())) is Frozen
    assert isinstance(start(given(lora_rank=2)), AdapterOff)
    monkeypatch.setattr(memory, "shares_memory", lambda device: False)
    full = references.start_of(given(), Weights(make("llama"), "fp32"), prepared(), None, CPU)
    assert type(full) is Frozen  # not in host memory


def test_a_reference_without_weights_of_its_own_cannot_be_offloaded(monkeypatch):
    monkeypatch.setattr(memory, "shares_memory", lambda device: False)
    for c, model in ((given(lora_rank=2, offload="reference"), adapted()), (given(offload="reference"), adapted())):
        with pytest.raises(AfzalError, match="offload=reference has no effect"):
            reference(c, model)
    for offload in ("reference", "all"):
        held = reference(given(offload=offload), make("llama"))
        assert isinstance(held, Offloaded)
        assert held.is_start
    assert isinstance(reference(given(offload="optimizer"), make("llama")), Frozen)
    assert isinstance(reference(given(lora_rank=2, offload="all"), adapted()), AdapterOff)


def test_another_model_as_reference_must_fit(tmp_path, monkeypatch):
    other = model_folder(tmp_path / "other", max_position_embeddings=128)
    policy = load_model(str(other), device=CPU)
    c = given(reference=str(other))
    found = reference(c, policy)
    assert (type(found), found.is_start, found.name) == (Frozen, False, f"the model {other}")
    assert next(found.model.parameters()).dtype == torch.float32
    half = reference(c, load_model(str(other), device=CPU), dtype="bf16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(AfzalError, match="has 128 positions, and sequences may have 129 tokens"):
        reference(c, policy, max_tokens=129)
    assert reference(c, policy, max_tokens=128)
    with pytest.raises(AfzalError, match=str(other)):
        reference(c, make("llama"))  # a policy with another vocabulary
    asked: list[Any] = []
    monkeypatch.setattr(references, "choose_sharing", lambda m, longest: asked.append(longest) or ("unshared", "why"))
    with pytest.raises(AfzalError, match="cannot share prompts"):
        reference(c, policy)
    assert asked == [17]
    assert reference(c, policy, sharing="unshared")
    assert asked == [17]
    monkeypatch.undo()
    monkeypatch.setattr(memory, "shares_memory", lambda device: False)
    held = reference(given(reference=str(other), offload="reference"), policy)
    assert (type(held), held.is_start, held.name) == (Offloaded, False, f"the model {other}")


def test_the_table_of_a_cached_reference_holds_every_row(tmp_path):
    model = make("llama")
    rows = {
        "train_mismatched": [tree("c", [5, 6], [[8]])],
        "evaluation_mismatched": [tree("d", [5, 8], [[9, 9]])],
    }
    found = reference(given(reference="cached"), model, tmp_path, **rows)
    assert isinstance(found, Cached)
    every = [*prepared().train, *prepared().evaluation, *rows["train_mismatched"], *rows["evaluation_mismatched"]]
    assert set(found.table) == {t.key(k) for t in every for k in range(len(t.branches))}
    assert any((tmp_path / "reference").iterdir())
    batch = collate(every, "shared", "cpu")
    torch.testing.assert_close(found.score(batch).token_logps, Frozen(model).score(batch).token_logps)
    elsewhere = given(reference="cached", reference_cache=str(tmp_path / "kept"))
    reference(elsewhere, model, tmp_path / "no", **rows)
    assert any((tmp_path / "kept").iterdir())
    assert not (tmp_path / "no").exists()


def test_the_table_of_a_new_adapter_is_of_the_model_without_it(tmp_path):
    model = adapted()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.3)
    found = reference(given(reference="cached", lora_rank=2), model, tmp_path)
    batch = collate(prepared().train, "shared", "cpu")
    bare, now = AdapterOff(model).score(batch).token_logps, Frozen(model).score(batch).token_logps
    torch.testing.assert_close(found.score(batch).token_logps, bare)
    assert (bare - now).abs().max() > 0.01
    kept = reference(given(reference="cached"), model, tmp_path / "trained")
    torch.testing.assert_close(kept.score(batch).token_logps, now)
