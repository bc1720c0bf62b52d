"""Runs that train adapters: the first loss, the saved folder, chains of stages, resumption to the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_runs import one_thread, settings

from afzal import config, recipes, runs
from afzal.errors import AfzalError
from afzal.model.load import load_model
from afzal.prepare import prepare
from afzal.train import checkpoint

LN2 = math.log(2)
VIRTUAL = ("prefix", "prompt", "p_tuning")
IDENTITIES = ("lora", "dora", "rslora", "ia3")
SHORT = {"max_steps": 3, "save_every_steps": None}


def mostly_slow(fast: tuple[str, ...], *others: str) -> list[Any]:
    """One adapter kind per way of computing for the fast tests, the others marked slow."""
    return [*fast, *(pytest.param(kind, marks=pytest.mark.slow) for kind in others)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


def made(folder: Path, name: str, method: str = "dpo", **overrides: Any) -> Any:
    few = {} if overrides.get("adapter") not in VIRTUAL else {"virtual_tokens": 4}
    return config.make(method, **settings(folder, folder / name, **(SHORT | few | overrides)))


def train(folder: Path, name: str, method: str = "dpo", **overrides: Any) -> runs.Run:
    return runs.open_run(recipes.train(made(folder, name, method, **overrides)))


@torch.no_grad()
def response_logps(model: Any, trees: Any) -> torch.Tensor:
    """``[items, 2]`` summed log-probs by the model's own forward pass, each response alone."""
    rows = []
    for t in trees:
        for branch in t.branches:
            ids = torch.tensor([[*t.prompt.tolist(), *branch.ids.tolist()]])
            logits = model(input_ids=ids).logits[0, -ids.shape[1] :][len(t.prompt) - 1 : -1]
            picked = logits.log_softmax(-1).gather(1, ids[0, len(t.prompt) :, None])[:, 0]
            rows.append(picked[torch.from_numpy(branch.scored)].sum())
    return torch.stack(rows).view(-1, 2)


def dpo_loss_by_hand(adapter: Path, given: Any, beta: float) -> tuple[float, Any]:
    """Mean DPO loss of PEFT's model of a folder against its base model, over all training pairs; and the model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trees = prepare(given).train
    base = response_logps(AutoModelForCausalLM.from_pretrained(given.model).eval(), trees)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given.model), adapter).eval()
    ratio = response_logps(model, trees) - base
    sign = torch.tensor([1.0 if (t.preferences[0].i == 0) == (t.preferences[0].p > 0.5) else -1.0 for t in trees])
    return float(-F.logsigmoid(beta * sign * (ratio[:, 0] - ratio[:, 1])).mean()), model


@pytest.mark.parametrize("kind", [*IDENTITIES, *VIRTUAL])
def test_the_first_loss_is_the_one_that_pefts_forward_gives(folder: Path, capsys: Any, kind: str):
    """At a vanishing learning rate the saved adapter equals the fresh one, so the loss can be computed from it."""
    name = f"first-{kind}"
    given = {"adapter": kind, "eval_fraction": 0.0, "eval_every_steps": None, "batch_size": 64, "beta": 0.5}
    run = train(folder, name, **given, lr=1e-30, max_steps=1)
    said = capsys.readouterr().err
    loss = run.metrics("train")[0]["loss"]
    expected, _ = dpo_loss_by_hand(run.path, made(folder, name, **given), 0.5)
    assert loss == pytest.approx(expected, abs=2e-5)
    assert run.facts()["reference"] == "the same model with its adapter switched off"
    assert run.facts()["model"]["adapter"] == kind
    if kind in IDENTITIES:
        assert loss == pytest.approx(LN2, abs=1e-6)
        assert "as it must be where policy equals reference" in said
    else:
        assert abs(loss - LN2) > 1e-4
        assert f"first loss {loss:.4f}, and 0.6931 with the adapter off" in said
        assert run.facts()["sharing"] == "shared"


@pytest.mark.parametrize("kind", mostly_slow(("lora", "prefix"), "prompt", "ia3"))
def test_each_trains_dpo_on_a_real_model_and_is_the_same_through_peft(shared: Path, tmp_path: Path, kind: str):
    model = shared / "data/models/stories260k"
    source = tmp_path / "pairs.jsonl"
    lines = (shared / "data/derived/stories_valence_pairs.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    source.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    given = {"model": str(model), "data": str(source), "out": str(tmp_path / "run"), "adapter": kind}
    size = {"lora_rank": 4} if kind == "lora" else {} if kind == "ia3" else {"virtual_tokens": 4}
    wanted = config.make(
        "dpo",
        **given,
        **size,
        lr=3e-2 if kind != "lora" else 3e-3,
        warmup=0,
        batch_size=36,
        max_steps=4,
        epochs=4,
        eval_fraction=0.0,
        sample_prompts=0,
    )
    run = runs.open_run(recipes.train(wanted))
    losses = [line["loss"] for line in run.metrics("train")]
    if kind in ("lora", "ia3"):
        assert losses[0] == pytest.approx(LN2, abs=1e-6)
    assert losses[-1] < losses[0] - 0.01
    by_hand, peft_model = dpo_loss_by_hand(run.path, wanted, wanted.beta)
    assert by_hand < losses[0] - 0.01
    trees = prepare(wanted).train[:4]
    again = response_logps(load_model(str(run.path)), trees)
    assert float((again - response_logps(peft_model, trees)).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", mostly_slow(("lora", "prefix"), "ia3", "p_tuning"))
def test_a_chain_of_stages_resolves_its_reference(folder: Path, kind: str):
    """SFT, then DPO on the same adapter: the reference is the SFT policy, not the base model."""
    first = train(folder, f"chain-{kind}-sft", "sft", adapter=kind, lr=3e-2)
    second = train(folder, f"chain-{kind}-dpo", model=str(first.path), lr=1e-2)
    losses = [line["loss"] for line in second.metrics("train")]
    assert losses[0] == pytest.approx(LN2, abs=1e-6)
    assert abs(losses[1] - LN2) > 1e-4
    assert second.facts()["reference"] == "frozen copy of the starting adapter"
    tuned, base = load_model(str(first.path)), load_model(str(folder / "model"))
    trees = prepare(made(folder, "unused")).train[:3]
    assert float((response_logps(tuned, trees) - response_logps(base, trees)).abs().max()) > 1e-2
    with pytest.raises(AfzalError, match=r"is an adapter already(?s:.*)afzal export"):
        train(folder, f"chain-{kind}-third", model=str(first.path), adapter=kind)


def plain(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics without times."""
    return [{k: v for k, v in line.items() if "second" not in k and k != "time"} for line in lines]


@pytest.mark.parametrize("kind", mostly_slow(("dora", "p_tuning"), "ia3", "prefix", "prompt"))
def test_a_broken_run_resumes_to_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    given = {"adapter": kind, "max_steps": 4, "save_every_steps": 1, "lr": 1e-2}
    save = checkpoint.save

    def break_after_two(path: Path, step: int, *rest: Any) -> Any:
        save(path, step, *rest)
        if step == 2:
            raise KeyboardInterrupt

    with one_thread():
        whole = train(folder, f"whole-{kind}", **given)
        monkeypatch.setattr(checkpoint, "save", break_after_two)
        with pytest.raises(KeyboardInterrupt):
            train(folder, f"broken-{kind}", **given)
        monkeypatch.undo()
        recipes.train(made(folder, f"broken-{kind}", **given), resume=True)
    for name in ("adapter_model.safetensors", "samples.jsonl"):
        assert (folder / f"broken-{kind}" / name).read_bytes() == (whole.path / name).read_bytes()
    broken = runs.open_run(folder / f"broken-{kind}")
    for part in ("train", "eval"):
        assert plain(broken.metrics(part)) == plain(whole.metrics(part))


def test_a_cached_reference_is_the_base_model_whatever_the_virtual_tokens(folder: Path):
    given = {"adapter": "prompt", "lr": 1e-2, "seed": 3}
    live = train(folder, "prompt-live", **given)
    table = train(folder, "prompt-cached", **given, reference="cached")
    for a, b in zip(live.metrics("train"), table.metrics("train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)


@pytest.mark.parametrize("kind", mostly_slow(("prompt", "dora"), "prefix", "ia3"))
def test_bf16_follows_fp32(folder: Path, kind: str):
    low = train(folder, f"bf16-{kind}", adapter=kind, dtype="bf16", lr=1e-2)
    full = train(folder, f"fp32-{kind}", adapter=kind, dtype="fp32", lr=1e-2)
    for a, b in zip(low.metrics("train"), full.metrics("train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=0.02)
    if kind in IDENTITIES:
        assert low.metrics("train")[0]["loss"] == pytest.approx(LN2, abs=1e-6)


@pytest.mark.parametrize("kind", mostly_slow(("prefix",), "prompt"))
def test_recomputed_activations_and_unshared_prompts_change_nothing(folder: Path, kind: str):
    runs_of = {"plain": {}, "recomputed": {"activation_checkpointing": "full"}, "rows": {"sharing": "unshared"}}
    results = {
        name: train(folder, f"{name}-{kind}", adapter=kind, lr=1e-2, **(given | {"save_every_steps": None}))
        for name, given in runs_of.items()
    }
    for name in ("recomputed", "rows"):
        for a, b in zip(results["plain"].metrics("train"), results[name].metrics("train"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=2e-6)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_a_prefix_in_rows_cannot_be_recomputed_and_that_is_said(folder: Path):
    """transformers drops the cache of layers that it recomputes."""
    with pytest.raises(AfzalError, match="would lose the prefix"):
        train(folder, "prefix-lost", adapter="prefix", activation_checkpointing="full", sharing="unshared")


def test_virtual_tokens_take_positions_of_the_model(folder: Path):
    prepared = prepare(made(folder, "unused", adapter="prompt", virtual_tokens=100))
    assert prepared.max_tokens == 156
    assert any("max_tokens is 156" in note for note in prepared.notes)


def test_quantize_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from afzal.model import load

    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with pytest.raises(AfzalError, match="pip install bitsandbytes"):
        train(folder, "q1", adapter="lora", quantize="4bit")
    monkeypatch.undo()
    model = load_model(str(folder / "model"))
    tokenizer = load.load_tokenizer(str(folder / "model"))
    for given, said in (({"adapter": "lora"}, "model that is in memory"), ({}, "quantize needs an adapter")):
        with pytest.raises(AfzalError, match=said):
            recipes.train(made(folder, f"q-{len(given)}", quantize="4bit", **given), model=model, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", mostly_slow(("dora", "ia3"), "lora", "rslora"))
def test_an_exported_adapter_is_a_plain_model_with_the_same_log_probs(folder: Path, tmp_path: Path, kind: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    run = train(folder, f"export-{kind}", adapter=kind, lr=0.1, beta=0.01)
    out = tmp_path / "merged"
    told = recipes.export(config.ExportConfig(model=str(run.path), out=str(out), data=str(folder / "pairs.jsonl")))
    facts = json.loads((out / "export.json").read_text())
    assert facts["largest_difference_nats"] < 1e-4 < 1e-2 < facts["adapter_to_base_nats"]
    assert f"{facts['largest_difference_nats']:.2g} nats" in told[1]
    assert not (out / "adapter_config.json").exists()
    trees = prepare(made(folder, "unused")).train[:4]
    merged = response_logps(AutoModelForCausalLM.from_pretrained(out).eval(), trees)
    assert float((merged - response_logps(load_model(str(run.path)), trees)).abs().max()) < 1e-4
    assert AutoTokenizer.from_pretrained(out).eos_token_id in GenerationConfig.from_pretrained(out).eos_token_id


def test_what_export_refuses(folder: Path, tmp_path: Path):
    run = train(folder, "export-refused", adapter="lora", lr=0.1)
    made_of = lambda **given: config.ExportConfig(**({"model": str(run.path), "out": str(tmp_path / "m")} | given))  # noqa: E731
    with pytest.raises(AfzalError, match=r"log-probs differ from the adapter's by"):
        recipes.export(made_of(tolerance=1e-12))
    with pytest.raises(AfzalError, match="is not an adapter"):
        recipes.export(made_of(model=str(folder / "model")))
    assert not (tmp_path / "m").exists()
    recipes.export(made_of(dtype="bf16"))
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").dtype == torch.bfloat16
    with pytest.raises(AfzalError, match="nothing was overwritten"):
        recipes.export(made_of())


def test_virtual_tokens_are_copied_and_said_to_be(folder: Path, tmp_path: Path):
    run = train(folder, "export-prompt", adapter="prompt", lr=0.1)
    told = recipes.export(config.ExportConfig(model=str(run.path), out=str(tmp_path / "copy")))
    assert "cannot be merged" in told[1]
    trees = prepare(made(folder, "unused")).train[:4]
    logps = [response_logps(load_model(str(path)), trees) for path in (run.path, tmp_path / "copy")]
    assert torch.equal(*logps)
    with pytest.raises(AfzalError, match="dtype has no effect"):
        recipes.export(config.ExportConfig(model=str(run.path), out=str(tmp_path / "no"), dtype="bf16"))


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_reward_models_train_layers_adapters_and_are_saved_merged(folder: Path, kind: str):
    from transformers import AutoModelForSequenceClassification

    given = settings(folder, folder / f"reward-{kind}", **SHORT, adapter=kind, lr=1e-2)
    wanted = {k: v for k, v in given.items() if k not in ("sample_prompts", "sample_tokens")}
    run = runs.open_run(recipes.train(config.make("reward", **wanted)))
    assert run.facts()["model"]["adapter"] == kind
    assert AutoModelForSequenceClassification.from_pretrained(run.path).num_labels == 1
    with pytest.raises(AfzalError, match="is not an adapter") as told:
        recipes.export(config.ExportConfig(model=str(run.path), out=str(folder / "none")))
    assert "ollama" not in str(told.value)
    with pytest.raises(AfzalError, match="is a reward model"):
        recipes.export(config.ExportConfig(model=str(run.path), out=str(folder / "none"), ollama=True))
