"""The KL that a run reports: of complete answers to the start, for every method, with an interval over prompts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runs import settings

from afzal import config, recipes, runs
from afzal.generate import Sample, Sampling, sample
from afzal.lab import exact, language
from afzal.model.attention import stock_attention
from afzal.model.load import load_model
from afzal.model.probe import choose_common_sharing
from afzal.model.reference import Frozen, offloaded
from afzal.recipes.divergence import kl_along
from afzal.recipes.prompt_columns import prompt_columns
from afzal.recipes.watch import Watch
from afzal.records import Item
from afzal.stats.intervals import over_seeds
from afzal.tokens import Speaker, tree
from afzal.train.feed import Layout

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watch")


@pytest.fixture(scope="module")
def policies() -> tuple[Any, Any]:
    """Two policies of the enumerable language, far enough apart for a KL of about a nat."""
    policy, start = language.new_model(1), language.new_model(2)
    with torch.no_grad():
        policy.lm_head.weight.mul_(10)
    assert choose_common_sharing((policy, start)) == "shared"
    return policy.eval().requires_grad_(False), start.eval().requires_grad_(False)


def ids_of(prompts: np.ndarray) -> list[list[int]]:
    texts = [language.prompt_text(x) for x in prompts]
    return [t.tolist() for t in Speaker(language.tokenizer()).encode_prompts(texts, max_tokens=8)]


def answers(policy: Any, ids: list[list[int]], n: int) -> list[Sample]:
    return sample(policy, ids, eos=[language.EOS], n=n, sampling=Sampling(max_new_tokens=4), seed=3)


def plain_logps(model: Any, row: torch.Tensor) -> torch.Tensor:
    with stock_attention(model):
        return model(input_ids=row).logits[0].double().log_softmax(-1)


def test_the_kl_along_an_answer_is_the_sum_of_its_next_tokens_kls(policies):
    """The sum over the answer's decisions of KL(policy || start), not the reverse, in nats per answer."""
    policy, start = policies
    ids = ids_of(language.prompts()[0][:6])
    drawn = answers(policy, ids, 2)
    values = kl_along(policy, Frozen(start), drawn, ids, Layout("shared", 64))
    for s, value in zip(drawn, values, strict=True):
        prompt = ids[s.prompt_index]
        row = torch.tensor([[*prompt, *s.ids.tolist()]])
        p, q = (plain_logps(m, row)[len(prompt) - 1 : -1] for m in (policy, start))
        assert value == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-5)
        other_way = float((q.exp() * (q - p)).sum())
        assert abs(value - other_way) > 1e-3


def test_weights_that_lie_elsewhere_give_the_same_kl(policies):
    policy, start = policies
    ids = ids_of(language.prompts()[0][:6])
    drawn = answers(policy, ids, 1)
    plain, away = (
        kl_along(policy, other, drawn, ids, Layout("shared", 24)) for other in (Frozen(start), offloaded(start, CPU))
    )
    assert plain == away


@pytest.mark.slow
def test_the_interval_over_prompts_covers_the_exact_kl(policies):
    """95% intervals of 32 prompts with one answer each, against the sum over all responses: 93 to 97% cover."""
    policy, start = policies
    train, held_out = language.prompts()
    prompts = np.concatenate([train, held_out])
    with stock_attention(policy), stock_attention(start):
        truth = exact.kl(*(exact.log_policy(m, prompts) for m in policies))
    ids = ids_of(prompts)
    values = np.reshape(
        kl_along(policy, Frozen(start), answers(policy, ids, 40), ids, Layout("shared", 4096)), (-1, 40)
    )
    assert abs(values.mean() - truth) < 0.02 * truth
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        drawn = values[rng.integers(len(ids), size=32), rng.integers(40, size=32)]
        ends = over_seeds(drawn.tolist())
        hits += ends.low <= values.mean() <= ends.high
    assert 0.93 <= hits / 2000 <= 0.97


def looked(policies: tuple[Any, Any], path: Path, sampling: Sampling) -> dict[str, float]:
    texts = [language.prompt_text(x) for x in language.prompts()[1]]
    ids = Speaker(language.tokenizer()).prompt_trees(texts, max_tokens=8)
    names = [str(k) for k in range(len(ids))]
    layout = Layout("shared", 512)
    start = Frozen(policies[1])
    speaker = Speaker(language.tokenizer())
    watch = Watch(
        policies[0], speaker, start, layout, ids, names, [language.EOS], sampling, 0, path, {}, [{}] * len(ids)
    )
    return watch.measure(0)


def test_the_kl_is_of_the_policy_itself_whatever_the_temperature_of_the_samples(policies, tmp_path):
    plain = looked(policies, tmp_path / "a.jsonl", Sampling(max_new_tokens=4))
    greedy = looked(policies, tmp_path / "b.jsonl", Sampling(max_new_tokens=4, temperature=0.0))
    names = ("kl", "kl_se", "kl_low", "kl_high", "kl_cut", "kl_tokens")
    assert {k: greedy[k] for k in names} == {k: plain[k] for k in names}
    assert greedy["samples/length"] != plain["samples/length"]


def test_the_share_of_answers_that_were_cut_stands_beside_the_kl(policies, tmp_path):
    whole = looked(policies, tmp_path / "a.jsonl", Sampling(max_new_tokens=4))
    cut = looked(policies, tmp_path / "b.jsonl", Sampling(max_new_tokens=1))
    assert cut["kl"] < whole["kl"]
    assert cut["kl_cut"] > whole["kl_cut"]
    assert cut["kl_tokens"] == 1.0
    assert whole["kl_se"] > 0
    assert whole["kl_low"] == pytest.approx(whole["kl"] - 2.0395134 * whole["kl_se"])  # Student's t of 32 prompts
    assert whole["kl_high"] == pytest.approx(whole["kl"] + 2.0395134 * whole["kl_se"])


def test_answers_may_be_as_long_as_the_data_and_the_model_allow():
    def limit(asked: int | None, longest: int, context: int) -> int:
        prepared: Any = SimpleNamespace(
            evaluation=[tree("a", range(5), [[7]])],
            evaluation_items=[Item("a", "p", ())],
            train=[],
            longest_response=longest,
            max_tokens=64,
            speaker=SimpleNamespace(context=context),
            ends=[0],
        )
        given = config.make("sft", model="m", data="d", sample_tokens=asked)
        return Watch.make(given, None, prepared, None, Layout("shared", 64), Path()).sampling.max_new_tokens

    assert limit(None, 40, 64) == 40
    assert limit(None, 90, 64) == 59
    assert limit(7, 90, 64) == 7


def test_prompts_of_samples_are_those_of_their_rows_also_where_rows_share_an_id():
    speaker = Speaker(language.tokenizer())
    texts = [language.prompt_text(x) for x in language.prompts()[0][:3]]
    items = [
        Item("a", texts[0], (), extra={"tools": [{"name": "f"}]}),
        Item("b", texts[1], ()),
        Item("b", texts[2], ()),
    ]
    trees = speaker.prompt_trees(items)
    given = prompt_columns([trees[2], trees[1], trees[0]], items, speaker, {}, Path())
    assert given == [{"prompt": texts[2]}, {"prompt": texts[1]}, {"prompt": texts[0], "tools": [{"name": "f"}]}]
    cut = replace(trees[2], prompt=trees[2].prompt[1:])
    assert prompt_columns([cut], items, speaker, {}, Path()) == [{}]


WAYS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "sft with lora": {"method": "sft", "lora_rank": 4, "lr": 1e-2},
    "dpo": {"method": "dpo"},
    "dpo, cached": {"method": "dpo", "reference": "cached"},
    "dpo, moving": {"method": "dpo", "reference_sync_steps": 1, "reference_mixup": 1.0},
    "simpo": {"method": "prefer", "objective": "simpo"},
    "cpo": {"method": "prefer", "objective": "cpo"},
    "orpo": {"method": "prefer", "objective": "orpo"},
    "slic": {"method": "prefer", "objective": "slic"},
}


@pytest.mark.parametrize("name", WAYS)
def test_every_method_shows_its_kl_to_the_start(folder: Path, tmp_path: Path, name: str):
    given = {**settings(folder, tmp_path / "run", max_steps=4, lr=3e-3, eval_every_steps=2), **WAYS[name]}
    run = runs.open_run(recipes.train(config.make(given.pop("method"), **given)))
    shown = [m["kl"] for m in run.metrics("eval")]
    assert shown[0] == 0.0
    assert shown[-1] > shown[0]
    start, policy = (load_model(str(p)).requires_grad_(False) for p in (given["model"], run.path))
    rows = [r for r in runs.read_jsonl(run.path / "samples.jsonl") if r["stage"] == "after"]
    again = kl_again(run, policy, start, len(rows), given)
    assert shown[-1] == pytest.approx(again, rel=1e-4, abs=1e-6)  # float32 sums, whose rounding shows in small values


def kl_again(run: runs.Run, policy: Any, start: Any, n: int, given: dict[str, Any]) -> float:
    """The KL of the saved policy to the run's start, by a watch newly made from the settings."""
    from afzal.prepare import prepare

    facts = run.facts()["config"]
    prepared = prepare(config.make(facts.pop("method"), **facts))
    layout = Layout("shared", 512)
    made = config.make(run.facts()["method"], **{k: v for k, v in run.facts()["config"].items() if k != "method"})
    watch = Watch.make(made, policy, prepared, Frozen(start), layout, run.path / "again")
    (run.path / "again").mkdir()
    assert len(watch.prompts) == n
    return watch.measure(1)["kl"]


def test_a_moving_reference_is_judged_by_where_the_run_started(folder: Path, tmp_path: Path):
    """The loss that is trained returns to ln 2 at every move of the reference; the held-out loss falls all the same,
    nothing stops early, and without moves the first update gives the same figures."""
    moved = settings(folder, tmp_path / "moves", max_steps=8, lr=3e-3, eval_every_steps=2, early_stop_patience=1)
    moved |= {"reference_sync_steps": 2, "reference_mixup": 1.0}
    run = runs.open_run(recipes.train(config.make("dpo", **moved)))
    train, held_out = run.metrics("train"), run.metrics("eval")
    assert [m["loss"] for m in train][::2] == pytest.approx([math.log(2)] * 4, abs=1e-5)
    losses = [m["loss"] for m in held_out]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.02
    assert len(train) == 8, run.facts()["stop_reason"]
    facts = run.facts()
    assert facts["reference_moves"] is True
    assert facts["reference_is_start"] is True


def test_whether_the_reference_is_the_start_is_a_fact_and_not_its_name(folder: Path, tmp_path: Path):
    """A reference given by path counts as another model; one named as the start does not."""
    given = settings(folder, tmp_path / "named", max_steps=1, sample_prompts=0)
    named = runs.open_run(recipes.train(config.make("dpo", **given, reference=given["model"])))
    assert named.facts()["reference_is_start"] is False
    assert named.facts()["starts_at_reference"] is False
    assert Frozen(None, "the model that training starts from").is_start
    virtual = settings(folder, tmp_path / "virtual", max_steps=1, sample_prompts=0, adapter="prompt", lr=1e-3)
    run = runs.open_run(recipes.train(config.make("dpo", **virtual)))
    assert run.facts()["reference_is_start"] is True
    assert run.facts()["starts_at_reference"] is False
    sft = runs.open_run(recipes.train(config.make("sft", **settings(folder, tmp_path / "sft", max_steps=1))))
    assert sft.facts()["reference_is_start"] is None
