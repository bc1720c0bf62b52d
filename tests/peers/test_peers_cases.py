"""Defects of TRL 1.16 as cases: the same input must give the right result here. Numbers follow the project's list."""

from __future__ import annotations

import json

import pytest
import torch
from helpers_models import make, random_trees
from helpers_runs import dropped_lines, settings

import afzal
from afzal import config, data, recipes, runs
from afzal.errors import AfzalError
from afzal.model import reference as reference_module
from afzal.model.load import load_model, load_tokenizer
from afzal.prepare import prepare
from afzal.tokens.batch import collate

SHORT = {"max_steps": 2, "eval_fraction": 0.0, "eval_every_steps": None, "save_every_steps": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


def run(folder, name, method="dpo", **overrides):
    out = folder / name
    return runs.open_run(recipes.train(config.make(method, **settings(folder, out, **(SHORT | overrides)))))


def first(result):
    return result.metrics("train")[0]


def count_reference_passes(monkeypatch):
    """Count the batches that a live reference scored while a cache was built."""
    asked = []
    frozen = reference_module.Frozen.score
    off = reference_module.AdapterOff.score
    monkeypatch.setattr(reference_module.Frozen, "score", lambda s, b: (asked.append(b), frozen(s, b))[1])
    monkeypatch.setattr(reference_module.AdapterOff, "score", lambda s, b: (asked.append(b), off(s, b))[1])
    return asked


def test_case_1_a_cache_is_not_reused_after_a_change_that_alters_the_maths(folder, monkeypatch):
    """TRL reuses its reference cache after max_length changed; the first loss is then no longer ln 2."""
    cache = {"reference": "cached", "reference_cache": str(folder / "cache-1")}
    run(folder, "c1-base", **cache)
    asked = count_reference_passes(monkeypatch)
    for name, change in {"cut": {"max_tokens": 16}, "rows": {"sharing": "unshared"}, "bf16": {"dtype": "bf16"}}.items():
        asked.clear()
        result = run(folder, f"c1-{name}", **cache, **change)
        assert asked, f"{name}: the old table was used"
        assert first(result)["loss"] == pytest.approx(0.6931472, abs=1e-6)


def test_case_2_a_sweep_over_beta_lr_and_out_computes_the_reference_once(folder, monkeypatch):
    """TRL recomputes everything when only lr, beta or the output folder changes."""
    cache = {"reference": "cached", "reference_cache": str(folder / "cache-2")}
    run(folder, "c2-base", **cache)
    asked = count_reference_passes(monkeypatch)
    for i, change in enumerate(({"beta": 0.5}, {"lr": 1e-4}, {"seed": 3}, {"batch_size": 4})):
        run(folder, f"c2-{i}", **cache, **change)
    assert asked == []


def test_case_3_another_adapter_seed_hits_the_cache(folder, monkeypatch):
    """TRL hashes the adapter's weights although the reference is the base model."""
    cache = {"reference": "cached", "reference_cache": str(folder / "cache-3"), "lora_rank": 2}
    run(folder, "c3-base", **cache)
    asked = count_reference_passes(monkeypatch)
    run(folder, "c3-seed", seed=9, **cache)
    assert asked == []


def test_case_4_the_reference_is_the_policy_as_it_was_handed_over(folder):
    """TRL reloads the reference from disk: a policy changed in memory starts away from ln 2."""
    given = settings(folder, folder / "c4", **SHORT)
    model, tokenizer = load_model(given["model"]), load_tokenizer(given["model"])
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(0.05 * torch.randn_like(model.model.embed_tokens.weight))
    given.pop("model")
    result = afzal.fit("dpo", model=model, tokenizer=tokenizer, **given)
    assert first(result)["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert first(result)["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_case_5_kto_on_pairs_trains_on_mixed_batches(folder):
    """TRL unpairs into all desirable, then all undesirable rows, read in sequence."""
    result = run(folder, "c5", "kto", max_steps=None, epochs=1.0)
    for record in result.metrics("train"):
        assert {"rewards/chosen", "rewards/rejected"} <= record.keys(), "an update had only one kind of row"


def test_case_6_evaluation_does_not_depend_on_how_rows_are_batched(folder):
    """TRL takes the mean of batch means: five rows in two batches change sign."""
    wide = run(folder, "c6-wide", eval_fraction=0.1, eval_every_steps=1)
    narrow = run(folder, "c6-narrow", eval_fraction=0.1, eval_every_steps=1, tokens_per_forward=40)
    for a, b in zip(wide.metrics("eval"), narrow.metrics("eval"), strict=True):
        for name in ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen"):
            assert a[name] == pytest.approx(b[name], abs=1e-4)


def test_case_7_token_losses_do_not_depend_on_accumulation(folder):
    """TRL's sft term is a mean of micro-batch means: 8x1 and 2x4 differ."""
    whole, pieces = (run(folder, f"c7-{n}", "sft", tokens_per_forward=n) for n in (8192, 40))
    for a, b in zip(whole.metrics("train"), pieces.metrics("train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_case_8_probability_and_weight_columns_are_used_and_dead_settings_refused(folder, tmp_path):
    """TRL ignores label_smoothing for the sigmoid loss, and columns p, weight and margin."""
    base = settings(folder, tmp_path / "unused")
    rows = [json.loads(line) for line in open(base["data"], encoding="utf-8")]  # noqa: SIM115
    losses = {}
    for name, extra in {"plain": {}, "p": {"p": 0.6}, "weight": {"weight": 3.0}}.items():
        path = tmp_path / f"{name}.jsonl"
        # the first half has the extra column's value, the rest the neutral one
        lines = [r | {k: (v if i % 2 else 1.0) for k, v in extra.items()} for i, r in enumerate(rows)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = run(tmp_path, f"c8-{name}", model=base["model"], data=str(path))
        losses[name] = result.metrics("train")[1]["loss"]
    assert losses["p"] > losses["plain"] + 1e-4
    assert losses["weight"] != losses["plain"]
    with pytest.raises(AfzalError, match="label_smoothing"):
        config.make("dpo", **base, label_smoothing=0.4)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_case_9_virtual_tokens_train_and_step_0_is_explained(folder, capsys, kind):
    """TRL crashes on prefix tuning in its default configuration, and a first loss that is not ln 2 goes unannounced."""
    result = run(folder, f"c9-{kind}", adapter=kind, virtual_tokens=4)
    said = capsys.readouterr().err
    assert abs(first(result)["loss"] - 0.6931472) > 1e-4
    assert "0.6931 with the adapter off: the reference is the model without it" in said
    assert f"a fresh {kind} adapter is not the identity" in said


def test_case_10_the_defaults_train_on_a_cpu(folder):
    """TRL's default configuration raises on a machine without a GPU."""
    given = settings(folder, folder / "c10")
    result = runs.open_run(
        recipes.train(config.make("dpo", model=given["model"], data=given["data"], out=given["out"], max_steps=1))
    )
    assert result.facts()["status"] == "finished"


def test_case_11_skewed_lengths_are_packed_without_padding():
    """TRL's group_by_length raises, and its batches are padded to the longest row."""
    trees = random_trees(16, longest=60)
    batch = collate(trees, "shared")
    assert batch.ids.numel() == sum(t.n_tokens for t in trees)


def test_case_12_degenerate_rows_are_counted_with_reasons(folder, tmp_path):
    """TRL keeps or drops identical, contradictory, empty and over-long rows without a word."""
    good = {"prompt": "Q?", "chosen": " yes", "rejected": " no"}
    rows = [good | {"prompt": f"Q{i}?"} for i in range(8)]
    rows += [good | {"rejected": " yes"}, good | {"chosen": ""}, good, good]
    rows += [good | {"chosen": " no", "rejected": " yes"}]  # contradicts the copies before it
    rows += [{"prompt": "L?", "chosen": " " + "a" * 90 + "b", "rejected": " " + "a" * 90 + "c"}]
    rows += [good | {"prompt": "x" * 90 + f"{i}?"} for i in range(2)]
    rows += [{"prompt": "M?", "chosen": " " + "d" * 90, "rejected": " no"}]
    path = tmp_path / "messy.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    model = settings(folder, folder / "c12")["model"]
    prepared = prepare(config.make("dpo", model=model, data=str(path), eval_fraction=0.0, max_tokens=40))
    facts = prepared.facts
    assert facts["dropped"] == {"identical_pair": 1, "empty_response": 1, "duplicate_item": 1, "no_pair": 1}
    assert facts["cut"] == {"prompt_cut": 2, "response_cut": 3}
    assert facts["parts"] == {"identical_after_cut": 1}
    (contradictions,) = [f for f in prepared.audit["audit"]["findings"] if f["code"] == "contradictions"]
    assert contradictions["count"] == 1
    assert len(prepared.train) + sum(facts["dropped"].values()) == len(rows)
    lost_their_end = [line for line in dropped_lines(prepared) if line["reason"] == "response_cut"]
    assert all("no EOS" in line["detail"] for line in lost_their_end)


def test_case_13_a_users_turn_inside_a_completion_is_context_only(folder, tmp_path):
    """TRL trains on the user's words inside chosen and rejected."""
    turns = [{"role": "assistant", "content": "AAA"}, {"role": "user", "content": "UUU"}]
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [*turns, {"role": "assistant", "content": "BBB"}],
        "rejected": [{"role": "assistant", "content": "CCC"}],
    }
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps(row) + "\n")
    model = settings(folder, folder / "c13")["model"]
    prepared = prepare(config.make("dpo", model=model, data=str(path), eval_fraction=0.0))
    tree = prepared.train[0]
    texts = [prepared.tokenizer.decode(b.ids[b.scored], skip_special_tokens=True) for b in tree.branches]
    assert sorted(t.replace("\n", "") for t in texts) == ["AAABBB", "CCC"]
    assert "UUU" in prepared.tokenizer.decode(max((b.ids for b in tree.branches), key=len))


def test_case_14_index_pairs_are_native_and_token_columns_are_refused_by_name(tmp_path):
    """TRL: KeyError 'chosen' for both."""
    path = tmp_path / "indexed.jsonl"
    path.write_text(json.dumps({"prompt": "Q", "responses": [" a", " b", " c"], "i": 2, "j": 0}) + "\n")
    (item,) = data.read(path).items
    assert (item.votes[0].first, item.votes[0].second, item.votes[0].outcome) == (2, 0, "first")
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text(json.dumps({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}) + "\n")
    with pytest.raises(AfzalError, match="prompt_ids"):
        data.read(tokens)


def test_case_15_every_counter_continues_on_resume(folder):
    """TRL's margins resume exactly, but num_tokens restarts."""
    given = settings(folder, folder / "c15", **(SHORT | {"max_steps": 4, "save_every_steps": 2, "keep_checkpoints": 2}))
    whole = runs.open_run(recipes.train(config.make("dpo", **(given | {"out": str(folder / "c15-whole")}))))
    recipes.train(config.make("dpo", **given))
    cut = runs.open_run(given["out"])
    import shutil

    shutil.rmtree(cut.checkpoints / "step-00000004")
    recipes.train(config.make("dpo", **given), resume=True)
    for name in ("tokens", "examples", "step", "loss", "rewards/margins"):
        assert [r[name] for r in cut.metrics("train")] == [r[name] for r in whole.metrics("train")]


def test_make_keeps_the_reference_table_inspectable(tmp_path):
    """The cache is one safetensors file with a JSON header that names its key and responses."""
    from safetensors import safe_open

    from afzal.model.probe import choose_sharing
    from afzal.model.reference import Frozen, cached

    model = make("llama")
    choose_sharing(model)
    trees = random_trees(3)
    cached(Frozen(model), trees, tmp_path, key="k" * 64, sharing="shared", budget=100, device="cpu")
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, framework="np") as file:
        about = json.loads(file.metadata()["afzal"])
        assert about["key"] == "k" * 64
        assert len(about["responses"]) == sum(len(t.branches) for t in trees)
