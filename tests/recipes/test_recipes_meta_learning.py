"""Meta-learning by the ordinary recipe: an adapter from which later runs start, and the same bits after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import finished, model_folder, one_thread, pair_file, settings, start
from safetensors.torch import load_file

from afzal import config, recipes, runs
from afzal.errors import AfzalError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and pairs of two tasks: in one the polite answers are better, in the other the rude ones."""
    path = tmp_path_factory.mktemp("meta")
    model_folder(path / "model")
    rows = [json.loads(line) for line in pair_file(path / "plain.jsonl", 60).read_text().splitlines()]
    for k, row in enumerate(rows):
        if k % 2:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        row["task"] = "rude" if k % 2 else "polite"
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def given(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    base = {"batch_size": 2, "support_size": 6, "query_size": 6, "inner_steps": 2, "inner_lr": 0.5, "lr": 0.02}
    base |= {"adapter": "lora", "epochs": 9.0, "max_steps": 12, "sample_prompts": 0, "eval_fraction": 0.3}
    return settings(folder, folder / name, **{**base, "sample_tokens": None, **changes})


def train(method: str, settings: dict[str, Any]) -> runs.Run:
    with one_thread():
        chosen = {k: v for k, v in settings.items() if v is not None}
        return runs.open_run(recipes.train(config.make(method, **chosen)))


def test_it_learns_to_adapt_and_later_runs_begin_there(folder: Path):
    run = train("meta", given(folder, "learned"))
    first, last = run.metrics("eval")[0], run.metrics("eval")[-1]
    assert last["tasks"] == 2
    assert last["loss"] < first["loss"] - 0.05, "after adapting"
    assert last["before/loss"] > 0.65, "no adapter suits both tasks without a step"
    assert run.facts()["starts_at_reference"] is False
    assert (run.path / "adapter_model.safetensors").exists()
    about: dict[str, Any] = {"adapter": None, "adapter_from": str(run.path), "max_steps": 1, "eval_fraction": 0.0}
    about |= {"eval_every_steps": None, "query_size": None, "support_size": None, "inner_steps": None}
    about |= {"inner_lr": None, "batch_size": 60, "optimizer": "sgd", "warmup": 0.0, "max_grad_norm": 0.0, "lr": 0.0}
    after = train("dpo", given(folder, "begun", **about))
    one, two = (load_file(r.path / "adapter_model.safetensors") for r in (run, after))
    assert all(torch.equal(one[name], two[name]) for name in one), "lr 0 moves nothing"
    assert after.metrics("train")[0]["loss"] == pytest.approx(
        train("dpo", given(folder, "again", **about | {"reference": "adapter_off"})).metrics("train")[0]["loss"]
    )
    moved = train("dpo", given(folder, "moved", **about | {"lr": 0.5}))
    three = load_file(moved.path / "adapter_model.safetensors")
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_a_prior_is_annealed_with_the_data(folder: Path):
    """prior_labels = items is the fixed prior; a prior stronger than the data keeps the adapter at its start."""
    run = train("meta", given(folder, "source", max_steps=3))
    about: dict[str, Any] = {"adapter": None, "adapter_from": str(run.path), "max_steps": 6, "eval_fraction": 0.0}
    about |= {"eval_every_steps": None, "query_size": None, "support_size": None, "inner_steps": None}
    about |= {"inner_lr": None, "batch_size": 60, "optimizer": "sgd", "lr": 0.02, "max_grad_norm": 0.0}
    ends = {
        name: train("dpo", given(folder, f"prior-{name}", **about | more)).metrics("train")[-1]
        for name, more in (
            ("free", {}),
            ("fixed", {"prior": 20.0}),
            ("same", {"prior": 20.0, "prior_labels": 60}),
            ("weak", {"prior": 20.0, "prior_labels": 3}),
        )
    }
    assert ends["fixed"]["distance"] == ends["same"]["distance"] < ends["weak"]["distance"]
    assert ends["free"]["loss"] < ends["weak"]["loss"] < ends["fixed"]["loss"]


def without_seconds(content: bytes, name: str) -> Any:
    if not name.endswith(".jsonl"):
        return content
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in content.splitlines()]


@pytest.mark.parametrize("order", ["fomaml", *(pytest.param(o, marks=pytest.mark.slow) for o in ("maml", "reptile"))])
def test_killed_and_resumed_it_ends_with_the_same_bytes(folder: Path, order: str):
    changes = {"order": order, "query_size": None if order == "reptile" else 6, "max_steps": 6}
    whole = given(folder, f"whole-{order}", **changes)
    assert finished(start("meta", whole)) == 0
    cut = given(folder, f"cut-{order}", **changes)
    process = start("meta", cut)
    saved = folder / f"cut-{order}" / "checkpoints" / "step-00000004"
    while not saved.exists() and process.is_alive():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert finished(process) == -signal.SIGKILL
    assert finished(start("meta", cut, resume=True)) == 0
    for name in ("metrics.jsonl", "adapter_model.safetensors"):
        one, two = ((folder / f"{n}-{order}" / name).read_bytes() for n in ("whole", "cut"))
        assert without_seconds(one, name) == without_seconds(two, name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "subject"}, "a row has no 'subject' that names its task"),
        ({"adapter": None}, "learns an adapter, and there is none"),
        ({"objective": "bco"}, "cannot be learned over tasks"),
        ({"order": "reptile"}, "query_size has no effect: reptile has no query set"),
        ({"order": "reptile", "query_size": None, "inner_steps": 0, "inner_lr": None}, "reptile needs inner_steps"),
        ({"inner_steps": 0}, "inner_lr has no effect: there is no inner step"),
        ({"dtype": "bf16"}, "would round inner steps away"),
        ({"order": "maml", "compile": True}, "differentiates twice"),
        ({"adapter_from": "model"}, "adapter has no effect with adapter_from"),
    ],
)
def test_what_cannot_be_learned_is_refused_by_name(folder: Path, changes: dict[str, Any], said: str):
    with pytest.raises(AfzalError, match=said):
        train("meta", given(folder, f"refused-{len(list(folder.iterdir()))}", **changes))


def test_one_task_is_refused_and_a_folder_without_adapter(folder: Path):
    rows = (folder / "pairs.jsonl").read_text().replace("rude", "polite")
    (folder / "one.jsonl").write_text(rows)
    with pytest.raises(AfzalError, match="needs several tasks, and all rows are of 'polite'"):
        train("meta", given(folder, "alone", data=str(folder / "one.jsonl")))
    with pytest.raises(AfzalError, match="is not an adapter"):
        train("meta", given(folder, "none", adapter=None, adapter_from=str(folder / "model")))


def test_the_plan_says_what_will_be_done(folder: Path):
    chosen = {k: v for k, v in given(folder, "planned").items() if v is not None}
    lines = recipes.plan(config.make("meta", **chosen))
    assert (
        "12 updates of 2 of 2 tasks by fomaml: 2 inner steps at 0.5, a support set of 6 and a query set of 6" in lines
    )
    assert not any("max_steps" in line for line in lines)


def test_a_run_that_ends_before_max_steps_says_so_and_how_not_to(folder: Path):
    for method, batch_size in (("meta", 2), ("dpo", 16)):
        chosen = {"adapter": "lora", "data": str(folder / "pairs.jsonl"), "batch_size": batch_size, "max_steps": 12}
        base = settings(folder, folder / f"short-{method}", **chosen)
        base = {k: v for k, v in base.items() if v is not None and k != "epochs"}
        (said,) = [line for line in recipes.plan(config.make(method, **base)) if "max_steps" in line]
        known = re.search("max_steps 12 is not reached: epochs=1 ends after [0-9]+ updates?; (.*) does not$", said)
        assert known is not None
        name, value = known[1].split("=")
        longer = recipes.plan(config.make(method, **base, **{name: float(value)}))
        assert not any("max_steps" in line for line in longer)
        assert any(line.startswith("12 updates of") for line in longer)


def test_iterations_that_end_before_max_steps_say_so(folder: Path):
    write = folder / "asked.jsonl"
    write.write_text('{"prompt": "Q: "}\n' * 8)
    base = {"data": str(write), "iterations": 1, "ppo_epochs": 2, "minibatches": 1, "max_steps": 5}
    base["reward"] = f"{Path(__file__)}:polite"
    whole = {k: v for k, v in settings(folder, folder / "short-rloo", **base).items() if k != "epochs"}
    lines = recipes.plan(config.make("rloo", **whole))
    assert "note: max_steps 5 is not reached: iterations=1 ends after 2 updates; iterations=3 does not" in lines


def polite(prompt: str, answer: str) -> float:
    """A reward function, used by the test above."""
    return float("please" in answer)
