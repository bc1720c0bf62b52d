"""Rotary frequencies that follow the longest row of a pass: every item keeps its own, whatever its neighbours."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import VOCABULARY, make
from helpers_runs import model_folder, settings
from torch import Tensor

from afzal import config, recipes, runs
from afzal.generate import Sampling, as_trees, choose_decoding, sample
from afzal.model.load import frozen_copy
from afzal.model.logprobs import score
from afzal.model.probe import choose_common_sharing, choose_sharing
from afzal.model.rotary import constant_up_to, frequencies, start_afresh
from afzal.tokens.batch import collate
from afzal.tokens.tree import Tree, tree

LIMIT = 16
LONGROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": LIMIT,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.3, 1.9, 1.4, 3.0],
        "original_max_position_embeddings": LIMIT,
        "factor": 4.0,
    },
}
DYNAMIC = {
    "max_position_embeddings": LIMIT,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
}
MODELS = {"phi3-longrope": ("phi3", LONGROPE), "llama-longrope": ("llama", LONGROPE), "dynamic": ("llama", DYNAMIC)}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    family, overrides = MODELS[request.param]
    return make(family, **overrides)


def trees() -> list[Tree]:
    """Items below the limit, at it, beyond it, and one whose responses are on both sides."""
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(3, VOCABULARY, n)  # noqa: E731
    shapes = {"short": (4, 6, 5), "limit": (8, 8, 2), "long": (14, 12, 7), "both": (9, 3, 12)}
    return [tree(name, draw(p), [draw(a), draw(b)]) for name, (p, a, b) in shapes.items()]


@torch.no_grad()
def alone(model: Any, prompt: Any, response: Any) -> Tensor:
    """Log-probs of a response by the model's own forward pass on this text alone."""
    start_afresh(model)
    ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


def expected(model: Any, some: list[Tree]) -> Tensor:
    return torch.cat([alone(model, t.prompt, b.ids) for t in some for b in t.branches])


@pytest.mark.parametrize(
    ("parameters", "limit"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, None),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, None),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128}, None),
        (LONGROPE["rope_parameters"], LIMIT),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 256),
    ],
)
def test_which_frequencies_depend_on_a_length(parameters: Any, limit: int | None):
    assert constant_up_to(make("llama", rope_parameters=parameters).config) == limit


def test_layers_may_have_embeddings_of_different_kinds():
    plain, grown = {"rope_type": "default", "rope_theta": 1e4}, {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2}
    both = make("gemma3", rope_parameters={"sliding_attention": plain, "full_attention": grown})
    assert constant_up_to(both.config) == 256
    assert constant_up_to(make("gpt2").config) is None


def test_rows_of_equal_frequencies():
    longrope, dynamic = (make("llama", **kind).config for kind in (LONGROPE, DYNAMIC))
    for about in (longrope, dynamic):
        assert frequencies(about, 1) == frequencies(about, LIMIT) != frequencies(about, LIMIT + 1)
    assert frequencies(longrope, LIMIT + 1) == frequencies(longrope, 64)
    assert frequencies(dynamic, LIMIT + 1) != frequencies(dynamic, LIMIT + 2)


def test_an_items_log_probs_do_not_depend_on_its_neighbours(model: Any):
    logps = score(model, collate(trees(), "unshared")).token_logps
    torch.testing.assert_close(logps, expected(model, trees()), rtol=0, atol=2e-5)


def test_nor_on_the_passes_before_it(model: Any):
    at_limit, long = trees()[1], trees()[2]
    first = score(model, collate([at_limit], "unshared")).token_logps
    score(model, collate([long], "unshared"))
    assert torch.equal(score(model, collate([at_limit], "unshared")).token_logps, first)


def test_its_gradient_does_not_either(model: Any):
    whole, parts = frozen_copy(model).requires_grad_(True), model
    score(whole, collate(trees(), "unshared")).token_logps.sum().backward()
    for t in trees():
        score(parts, collate([t], "unshared")).token_logps.sum().backward()
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_prompts_are_shared_only_where_no_row_is_too_long(model: Any):
    shared, reason = choose_sharing(model)
    assert shared == "unshared"
    assert f"beyond {LIMIT} tokens" in reason
    assert choose_sharing(model, LIMIT + 1) == ("unshared", reason)
    assert choose_sharing(model, LIMIT) == ("shared", "")
    logps = score(model, collate(trees()[:1], "shared")).token_logps
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logps, expected(model, trees()[:1]), rtol=0, atol=2e-5)
    assert choose_common_sharing((model, make("llama")), LIMIT + 1) == "unshared"
    assert choose_common_sharing((model, make("llama")), LIMIT) == "shared"


def test_a_shared_batch_of_both_kinds_is_refused(model: Any):
    choose_sharing(model, LIMIT)
    with pytest.raises(ValueError, match=f"beyond {LIMIT} tokens"):
        score(model, collate(trees(), "shared"))


@pytest.mark.parametrize("decoding", ["auto", "stock"])
def test_samples_have_the_log_probs_of_the_model_on_what_was_written_so_far(
    model: Any, decoding: Any, monkeypatch: pytest.MonkeyPatch
):
    """Within the limit, across it and beyond it; and the same texts whichever prompts are decoded with them.

    Only here is a model sampled beyond its stated positions, to test dynamic frequencies.
    """
    monkeypatch.setattr(importlib.import_module("afzal.generate.sample"), "context_of_model", lambda model: None)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, VOCABULARY, n).tolist() for n in (3, 13, 20)]
    how = {"eos": [2], "n": 2, "sampling": Sampling(8, min_new_tokens=8), "seed": 5, "decoding": decoding}
    drawn = sample(model, prompts, **how)
    for s in drawn:
        text = [*prompts[s.prompt_index], *s.ids.tolist()]
        before = len(text) - len(s.ids)
        wanted = [one_token(model, text, i) for i in range(before, len(text))]
        np.testing.assert_allclose(s.logps, wanted, atol=2e-5)
    short = sample(model, prompts[:1], **how)
    assert [s.ids.tolist() for s in short] == [s.ids.tolist() for s in drawn[:2]]


@torch.no_grad()
def one_token(model: Any, text: list[int], i: int) -> float:
    """Log-prob of token ``i`` given the text before it, read without it."""
    start_afresh(model)
    return float(model(input_ids=torch.tensor([text[:i]]), use_cache=False).logits[0, -1].log_softmax(-1)[text[i]])


def test_sharing_while_decoding_asks_how_long_texts_may_become(model: Any):
    assert choose_decoding(model)[0] == "stock"
    assert choose_decoding(model, LIMIT + 1)[0] == "stock"
    assert choose_decoding(model, LIMIT) == ("shared", "")


def test_samples_within_the_limit_are_scored_alike(model: Any):
    drawn = sample(model, [[5, 6, 7], [8, 9]], eos=[2], n=2, sampling=Sampling(6), seed=1)
    scored = score(model, collate(as_trees(drawn, [[5, 6, 7], [8, 9]]), "unshared")).token_logps
    np.testing.assert_allclose(np.concatenate([s.logps for s in drawn]), scored.detach(), atol=2e-5)


def test_scores_of_a_reward_model_do_not_depend_on_neighbours():
    from transformers import AutoModelForSequenceClassification

    from afzal.model.reward import head_scores

    torch.manual_seed(0)
    about = make("llama", **LONGROPE).config
    about.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(about).eval()
    every = torch.cat([head_scores(model, collate([t], "unshared")) for t in trees()])
    torch.testing.assert_close(head_scores(model, collate(trees(), "unshared")), every, rtol=0, atol=1e-5)


def test_a_run_says_that_prompts_are_not_shared_where_a_row_may_be_beyond_the_limit(tmp_path: Path, capsys: Any):
    wide = {**LONGROPE, "max_position_embeddings": 256, "original_max_position_embeddings": 64}
    wide["rope_parameters"] = {**LONGROPE["rope_parameters"], "original_max_position_embeddings": 64}
    model_folder(tmp_path / "model", **wide)
    for longest, sharing in ((64, "unshared"), (4, "shared")):
        out = tmp_path / f"run-{longest}"
        given = settings(tmp_path, out, max_steps=1, save_every_steps=None, sample_tokens=longest)
        recipes.train(config.make("dpo", **given))
        assert runs.open_run(out).facts()["sharing"] == sharing
        told = "prompts are not shared: its rotary frequencies depend on the longest row" in capsys.readouterr().err
        assert told == (sharing == "unshared")
        losses = [line["loss"] for line in runs.open_run(out).metrics("train")]
        assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
