"""Cached reference log-probs: computed once for a sweep, kept after an interruption, and damage is named."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from helpers_models import make, random_trees
from helpers_runs import settings

from afzal import config, recipes
from afzal.errors import AfzalError
from afzal.model import reference
from afzal.model.probe import choose_sharing
from afzal.model.reference import Frozen, cached
from afzal.recipes import references
from afzal.tokens.batch import collate
from afzal.train.feed import Layout


@pytest.fixture
def passes(monkeypatch):
    """How many forward passes live references have made."""
    made = []
    score = Frozen.score
    monkeypatch.setattr(Frozen, "score", lambda self, batch: (made.append(batch), score(self, batch))[1])
    return made


def test_a_sweep_of_nine_computes_the_reference_once(tmp_path, passes):
    shared = {"reference": "cached", "reference_cache": str(tmp_path / "cache"), "max_steps": 1, "sample_prompts": 0}
    for n, (beta, lr) in enumerate(itertools.product((0.1, 0.3, 0.5), (1e-6, 3e-6, 1e-5))):
        given = settings(tmp_path, tmp_path / f"run-{n}", **shared, beta=beta, lr=lr)
        recipes.train(config.make("dpo", **given))
        if n == 0:
            first = len(passes)
            assert first > 0
    assert len(passes) == first, "eight more runs, not one more forward pass of the reference"


def test_what_a_killed_pass_has_computed_is_not_computed_again(tmp_path, passes, monkeypatch):
    monkeypatch.setattr(reference, "_TOKENS_PER_FILE", 1)
    model = make("llama")
    choose_sharing(model)
    trees = random_trees(12)
    where = {"key": "k" * 24, "sharing": "shared", "budget": 40, "device": "cpu"}

    class Killed(Frozen):
        def score(self, batch):
            if len(passes) == 3:
                raise KeyboardInterrupt
            return super().score(batch)

    with pytest.raises(KeyboardInterrupt):
        cached(Killed(model), trees, tmp_path, **where)
    assert len(list(tmp_path.iterdir())) == 3
    done = len(passes)
    table = cached(Frozen(model), trees, tmp_path, **where).table
    resumed = len(passes) - done
    passes.clear()
    whole = cached(Frozen(model), trees, tmp_path / "whole", **where).table
    assert resumed == len(passes) - 3
    assert set(table) == set(whole)
    assert all((table[key] - whole[key]).max() < 1e-5 for key in whole)


def test_a_damaged_or_foreign_file_is_named_and_not_replaced(tmp_path):
    model = make("llama")
    choose_sharing(model)
    where = {"key": "a" * 24 + "1", "sharing": "shared", "budget": 100, "device": "cpu"}
    cached(Frozen(model), random_trees(3), tmp_path, **where)
    (file,) = tmp_path.iterdir()
    with pytest.raises(AfzalError, match="belongs to other weights"):
        cached(Frozen(model), random_trees(3), tmp_path, **(where | {"key": "a" * 24 + "2"}))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(AfzalError, match="is damaged") as error:
        cached(Frozen(model), random_trees(3), tmp_path, **where)
    assert str(file) in str(error.value)


def test_an_idle_batch_is_scored_and_not_kept(tmp_path, passes):
    model = make("llama")
    choose_sharing(model)
    trees = random_trees(4)
    mine, others = (collate(part, "shared", "cpu") for part in (trees[:3], trees[3:]))
    table = reference.fill_cache(Frozen(model), [mine, replace(others, idle=True)], tmp_path, "k" * 24)
    assert len(passes) == 2, "the other ranks wait for it"
    assert set(table) == {t.key(k) for t in trees[:3] for k in range(len(t.branches))} - {
        t.key(k) for t in trees[3:] for k in range(len(t.branches))
    }


def test_a_rank_that_does_not_see_what_the_others_have_written_says_so(tmp_path, monkeypatch):
    model = make("llama")
    choose_sharing(model)
    live, trees, layout = Frozen(model), random_trees(4), Layout("shared", 100)
    table = references._cached_together(live, trees, tmp_path, "k" * 24, layout).table
    assert set(table) == {t.key(k) for t in trees for k in range(len(t.branches))}
    monkeypatch.setattr(references, "read_cache", lambda folder, key: {})
    with pytest.raises(AfzalError, match="rank 0 does not see all reference log-probs") as error:
        references._cached_together(live, trees, tmp_path, "k" * 24, layout)
    assert "file system that all machines share" in error.value.remedy
