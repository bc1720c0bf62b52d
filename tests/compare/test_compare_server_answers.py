"""Comparison answers written by a server: whose weights are asked, what is measured, and what an interruption costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model_server import serving
from helpers_runs import model_folder, one_thread, pair_file
from helpers_scripted_server import Scripted, scripted, server_file, wait_for_nothing
from helpers_tokenizers import llama_tokenizer
from transformers import AutoModelForCausalLM

from afzal import config
from afzal.compare import compare
from afzal.errors import AfzalError
from afzal.model.speakers import open_speaker

PROMPTS, SAMPLES = 3, 2


@pytest.fixture
def script(monkeypatch) -> Iterator[Scripted]:
    wait_for_nothing(monkeypatch)
    with scripted() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("compare-served")
    model_folder(root / "model")
    pair_file(root / "pairs.jsonl", 16)
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"q{k}"}) + "\n" for k in range(PROMPTS)))
    (root / "r.py").write_text("def r(prompt, answer):\n    return float(sum(map(ord, answer)) % 97)\n")
    return root


def settings(place: Path, out: Path, server: str, **changes: Any) -> config.CompareConfig:
    common = {"batch_size": 8, "lr": 0.01, "lr_schedule": "constant", "warmup": 0, "max_steps": 2, "eval_fraction": 0.0}
    base = {
        "model": str(place / "model"),
        "data": str(place / "pairs.jsonl"),
        "prompts": str(place / "prompts.jsonl"),
        "rewards": {"r": f"{place / 'r.py'}:r"},
        "methods": [{"name": "dpo", "train": "dpo"}, {"name": "bon", "best_of": [2]}],
        "common": common | {"sample_prompts": 0},
        "seeds": [0],
        "samples": SAMPLES,
        "sample_tokens": 12,
        "snapshots": 2,
        "resamples": 100,
        "device": "cpu",
        "generator": server,
        "out": str(out),
        **changes,
    }
    return config.build(config.CompareConfig, [config.Setting(k, v) for k, v in base.items() if v is not None])


def run(place: Path, out: Path, server: str, **changes: Any) -> None:
    with one_thread():
        compare(settings(place, out, server, **changes), say=lambda _: None)


def kept(out: Path, name: str) -> dict[str, Any]:
    (path,) = (out / "measured").glob(f"{name}.json")
    return json.loads(path.read_text())


def test_each_policy_answers_with_its_own_weights_and_its_kl_is_that_of_the_texts(script, place, tmp_path):
    """Both steps of a run and the start are folders while they are being asked; the KL is measured along the texts."""
    weights: dict[str, bytes] = {}

    def says(body: dict[str, Any]) -> str:
        weights.setdefault(body["model"], (Path(body["model"]) / "model.safetensors").read_bytes())
        return f"said {body['seed'] % 1000}"

    script.says, out = says, tmp_path / "out"
    run(place, out, server_file(tmp_path / "s.yaml", script, kind="vllm", model="{policy}"))
    asked = Counter(body["model"] for body in script.bodies)
    final, start = str((out / "runs" / "dpo-0").resolve()), str((place / "model").resolve())
    (step,) = asked.keys() - {final, start}
    # the start answers for itself, and twice as often for the best of two
    assert asked == {start: 3 * PROMPTS * SAMPLES, step: PROMPTS * SAMPLES, final: PROMPTS * SAMPLES}
    assert len(set(weights.values())) == 3, "each step has weights of its own"
    assert not Path(step).exists()
    assert not list((out / "measured").glob("*.sqlite"))
    trained = kept(out, "dpo-0-step-00000002")
    assert all(text.startswith("said ") for texts in trained["texts"] for text in texts)
    by_hand = torch.tensor(
        [[kl(final, start, f"q{k}", text) for text in texts] for k, texts in enumerate(trained["texts"])]
    )
    torch.testing.assert_close(torch.tensor(trained["kl"]), by_hand, atol=2e-5, rtol=0)
    assert by_hand.min() > 1e-3
    assert not any(any(row) for row in trained["unended"])
    assert kept(out, "start-0")["kl"] == [[0.0] * SAMPLES] * PROMPTS


@torch.no_grad()
def kl(policy: str, start: str, prompt: str, text: str, *, ended: bool = True) -> float:
    """KL(policy || start) of the next token, nats, summed over the answer's tokens and its end if it has one."""
    tokenizer = open_speaker(policy).tokenizer
    before = tokenizer(prompt)["input_ids"]
    answer = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + answer])
    p, q = (
        AutoModelForCausalLM.from_pretrained(path)(ids)
        .logits[0, len(before) - 1 : None if ended else -1]
        .log_softmax(-1)
        for path in (policy, start)
    )
    return float((p.exp() * (p - q)).sum())


def test_a_cut_answer_is_distinguished_from_one_that_ended(script, place, tmp_path):
    script.finish, out = "length", tmp_path / "out"
    server = server_file(tmp_path / "s.yaml", script, kind="vllm")
    run(place, out, server, methods=[{"name": "bon", "best_of": [2]}], data=None, common=None, snapshots=None)
    answers = kept(out, "start-0")
    assert all(all(row) for row in answers["unended"])
    # bytes, without an end marker
    assert answers["tokens"] == [[len(text) for text in texts] for texts in answers["texts"]]


def test_prompts_that_the_server_cannot_answer_are_refused_before_any_training(script, place, tmp_path):
    spaced = llama_tokenizer()
    model = model_folder(tmp_path / "model", vocab_size=len(spaced))
    spaced.save_pretrained(model)
    server = server_file(tmp_path / "s.yaml", script, kind="transformers", model="{policy}")
    with pytest.raises(AfzalError, match="drop the space between a plain prompt and its answer"):
        run(place, tmp_path / "out", server, model=str(model))
    assert not (tmp_path / "out").exists()
    assert not script.seen


def test_weights_that_stay_the_same_are_refused_if_policies_differ(script, place, tmp_path):
    with pytest.raises(AfzalError, match=r"the answers of all policies with the same weights"):
        run(place, tmp_path / "out", server_file(tmp_path / "s.yaml", script))
    with pytest.raises(AfzalError, match=r"folder has no effect"):
        run(place, tmp_path / "out", server_file(tmp_path / "t.yaml", script, folder=str(place / "model")))
    assert not script.seen
    assert not (tmp_path / "out").exists()


def test_an_answer_that_a_filter_withheld_is_an_error(script, place, tmp_path):
    script.finish = "content_filter"
    with pytest.raises(AfzalError, match=r"ended answer 0 to prompt 0 by 'content_filter'"):
        run(place, tmp_path / "out", server_file(tmp_path / "s.yaml", script, kind="vllm", model="{policy}"))


def test_a_stopped_comparison_asks_only_what_has_no_reply(script, place, tmp_path):
    server = server_file(tmp_path / "s.yaml", script, kind="vllm", model="{policy}", concurrency=1)
    run(place, tmp_path / "whole", server)
    whole = len(script.seen)
    script.seen.clear()
    script.stop_after = 3 * PROMPTS * SAMPLES + 2
    with pytest.raises(AfzalError):
        run(place, tmp_path / "out", server)
    before = len(script.seen) - 1  # the last one was refused
    script.stop_after = None
    run(place, tmp_path / "out", server)
    assert len(script.seen) - 1 == whole
    assert before >= 3 * PROMPTS * SAMPLES
    for path in sorted((tmp_path / "whole" / "measured").iterdir()):
        other = json.loads((tmp_path / "out" / "measured" / path.name).read_text())
        assert other["texts"] == json.loads(path.read_text())["texts"]


@pytest.mark.slow
def test_a_comparison_by_transformers_serve(place, tmp_path):
    """Another project's server loads the folder of each policy: it writes the texts, and we compute the KL."""
    out = tmp_path / "out"
    common = {"batch_size": 8, "lr": 0.03, "lr_schedule": "constant", "warmup": 0, "max_steps": 2}
    with serving() as (url, _):
        server = server_file(tmp_path / "s.yaml", url, kind="transformers", model="{policy}")
        run(place, out, server, common=common | {"eval_fraction": 0.0, "sample_prompts": 0}, snapshots=1)
    start, trained = kept(out, "start-0"), kept(out, "dpo-0-step-00000002")
    assert start["kl"] == [[0.0] * SAMPLES] * PROMPTS
    assert start["texts"] != trained["texts"]  # with the same seeds
    ended = [[not cut for cut in row] for row in trained["unended"]]
    final, first = str(out / "runs" / "dpo-0"), str(place / "model")
    for k, texts in enumerate(trained["texts"]):
        for n, text in enumerate(texts):
            by_hand = kl(final, first, f"q{k}", text, ended=ended[k][n])
            assert trained["kl"][k][n] == pytest.approx(by_hand, abs=1e-3)
    assert (out / "compare.html").is_file()
