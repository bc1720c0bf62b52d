"""Out of memory in the middle of an update: smaller forward passes, and everything else unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees
from helpers_runs import settings

from afzal import config, objectives, recipes, runs
from afzal.errors import AfzalError
from afzal.model import logprobs
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.train.feed import Feed, Layout, Update
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, trainable

STEPS, AT = 5, 2  # updates, and the one in which memory runs out


class Scene:
    """A DPO run, with its parts exposed so that tests can disturb it."""

    def __init__(self, optimizer: str = "adamw", budget: int = 1000) -> None:
        self.model = make("llama")
        assert choose_sharing(self.model)[0] == "shared"
        self.reference = live_reference(self.model)
        self.method = Method.of(objectives.get("dpo"), {"beta": 0.1}, self.reference)
        self.feed = Feed(random_trees(16), (), 8, 0, Layout("shared", budget))
        self.optimizer = make_optimizer(trainable(self.model).values(), optimizer)  # pyright: ignore
        self.said: list[str] = []
        self.asked: list[Update] = []
        self.state = State()

    @property
    def layout(self) -> Layout:
        return self.feed.layout

    @property
    def updates_per_epoch(self) -> float:
        return self.feed.updates_per_epoch

    def update(self, step: int) -> Update:
        self.asked.append(self.feed.update(step))
        return self.asked[-1]

    def run(self) -> list[dict[str, Any]]:
        log: list[dict[str, Any]] = []
        hooks = Hooks(log=log.append, say=self.said.append)
        plan = Settings(steps=STEPS, lr=1e-3)
        fit(self.model, self.method, self, self.optimizer, plan, hooks=hooks, state=self.state)
        return log


def once(scene: Scene, times: int = 1) -> Callable[..., None]:
    """Raise torch's error the first ``times`` it is called in update AT."""
    left = [times]

    def out_of_memory(*_: Any, **__: Any) -> None:
        if scene.state.step == AT and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return out_of_memory


def in_reference(scene: Scene, fail: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    scene.reference.model.model.layers[1].register_forward_pre_hook(fail)  # pyright: ignore


def in_policy(scene: Scene, fail: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    scene.model.model.layers[1].register_forward_pre_hook(fail)


def in_head(scene: Scene, fail: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    sound = logprobs.linear_logps

    def broken(hidden: torch.Tensor, *rest: Any, **keywords: Any) -> torch.Tensor:
        if hidden.requires_grad:
            fail()
        return sound(hidden, *rest, **keywords)

    monkeypatch.setattr(logprobs, "linear_logps", broken)


def in_backward(scene: Scene, fail: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-way: the second layer's weights have gradients then, and the first one's have none."""
    scene.model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: fail())


def in_step(scene: Scene, fail: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    scene.optimizer.register_step_pre_hook(fail)


POINTS = {
    "reference": in_reference,
    "policy": in_policy,
    "head": in_head,
    "backward": in_backward,
    "optimiser step": in_step,
}


# the optimiser matters only if it is the part disturbed
DISTURBED = [("adamw", point) for point in POINTS] + [("rmsprop", "optimiser step")]
REST = [pytest.param("rmsprop", point, marks=pytest.mark.slow) for point in POINTS if point != "optimiser step"]


@pytest.mark.parametrize(("optimizer", "point"), [*DISTURBED, *REST])
def test_the_update_is_made_again_in_halves_and_nothing_else_changes(point, optimizer, monkeypatch):
    sound = Scene(optimizer)
    expected = sound.run()
    scene = Scene(optimizer)
    POINTS[point](scene, once(scene), monkeypatch)
    records = scene.run()
    notes = [line for line in records if line["kind"] == "memory"]
    records = [line for line in records if line["kind"] == "train"]
    assert len(records) == len(expected) == STEPS
    for a, b in zip(expected, records, strict=True):
        assert abs(a["loss"] - b["loss"]) <= 1e-6
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
        assert (a["examples"], a["tokens"]) == (b["examples"], b["tokens"]), "the items of every update are the same"
    # Adam turns the rounding of a gradient of 1e-8 into a full step
    for a, b in zip(sound.model.parameters(), scene.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    failed, again = scene.asked[AT], scene.asked[AT + 1]
    largest = max(b.ids.numel() for b in failed.batches)
    assert len(failed.batches) == 1
    assert sorted(failed.item_ids) == sorted(again.item_ids)
    assert max(b.ids.numel() for b in again.batches) <= largest // 2
    assert notes == [{"kind": "memory", "step": AT, "tokens_per_forward": largest // 2}]
    assert scene.state.tokens_per_forward == scene.layout.tokens_per_forward == largest // 2
    assert scene.said == [f"out of memory: update {AT + 1} again, with {largest // 2} tokens per forward pass"]


def test_memory_that_runs_out_in_the_first_step_leaves_no_half_made_optimiser(monkeypatch):
    """AdamW allocates its state in its first step, and it does not fit then."""
    expected = Scene().run()
    scene = Scene()
    made = torch.zeros_like
    calls = []

    def broken(*given: Any, **keywords: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:  # two parameters have their full state, the third has half of it
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return made(*given, **keywords)

    def break_it(*_: Any) -> None:
        monkeypatch.setattr(torch, "zeros_like", broken)

    scene.optimizer.register_step_pre_hook(break_it)
    scene.optimizer.register_step_post_hook(lambda *_: monkeypatch.setattr(torch, "zeros_like", made))
    records = [line for line in scene.run() if line["kind"] == "train"]
    assert len(scene.said) == 1
    for a, b in zip(expected, records, strict=True):
        assert abs(a["loss"] - b["loss"]) <= 1e-6


def test_weights_that_have_begun_to_move_are_not_moved_twice():
    scene = Scene()
    step = scene.optimizer.step

    def broken(*given: Any) -> Any:
        outcome = step(*given)
        if scene.state.step == AT:
            raise torch.OutOfMemoryError("in the midst of it")
        return outcome

    scene.optimizer.step = broken  # pyright: ignore
    with pytest.raises(AfzalError, match=rf"(?s)changing the weights in update {AT + 1}.*--resume"):
        scene.run()


def test_it_halves_until_each_item_is_alone_and_then_gives_up():
    scene = Scene()
    in_policy(scene, once(scene, times=99), None)  # pyright: ignore
    with pytest.raises(torch.OutOfMemoryError):
        scene.run()
    budgets = [max(b.ids.numel() for b in update.batches) for update in scene.asked[AT:]]
    assert budgets == sorted(budgets, reverse=True)
    alone = max(scene.asked[-1].batches, key=lambda b: b.ids.numel())
    assert len(alone.item_ids) == 1
    assert all(p.grad is None for p in scene.model.parameters())


def test_another_error_is_raised_as_it_is():
    scene = Scene()

    def broken(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    scene.model.model.layers[1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        scene.run()
    assert not scene.said


def test_random_numbers_begin_again():
    """Draws from torch's generator in an update are the same the second time."""
    drawn: dict[int, list[float]] = {}
    for fails in (0, 1):
        scene = Scene()
        drawn[fails] = mine = []
        scene.model.model.layers[0].register_forward_pre_hook(lambda *_, mine=mine: mine.append(float(torch.rand(()))))
        in_step(scene, once(scene, times=fails), None)  # pyright: ignore
        torch.manual_seed(0)
        scene.run()
    at = next(i for i, (a, b) in enumerate(zip(drawn[0], drawn[1], strict=False)) if a != b)
    assert drawn[1][at] == drawn[0][at - 1], "the pass that failed and the first of its halves draw the same"


def test_a_whole_run_says_logs_resumes_and_ends_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = recipes.train(config.make("dpo", **settings(tmp_path, tmp_path / "plain", max_steps=6)))
    sound = recipes.train.__globals__["fit"]
    failed = []

    def disturbed(model: Any, *parts: Any, hooks: Hooks, state: State, **rest: Any) -> str:
        def fail(*_: Any) -> None:
            if state.step == 2 and not failed and torch.is_grad_enabled():
                failed.append(1)
                raise torch.OutOfMemoryError("CUDA out of memory")

        def stop() -> str | None:
            return "SIGTERM" if state.step == 4 else None

        hook = model.model.layers[1].register_forward_pre_hook(fail)
        try:
            return sound(model, *parts, hooks=replace(hooks, stop=stop), state=state, **rest)
        finally:
            hook.remove()

    monkeypatch.setitem(recipes.train.__globals__, "fit", disturbed)
    wanted = config.make("dpo", **settings(tmp_path, tmp_path / "run", max_steps=6))
    with pytest.raises(AfzalError, match="stopped by SIGTERM"):
        recipes.train(wanted)
    lowered = runs.open_run(tmp_path / "run").metrics("memory")[0]["tokens_per_forward"]
    seen = []

    def resumed(model: Any, method: Any, feed: Any, *parts: Any, **rest: Any) -> str:
        seen.append(feed.layout.tokens_per_forward)
        return sound(model, method, feed, *parts, **rest)

    monkeypatch.setitem(recipes.train.__globals__, "fit", resumed)
    result = runs.open_run(recipes.train(wanted, resume=True))
    assert seen == [lowered]
    before = runs.open_run(plain).metrics("train")
    for a, b in zip(before, result.metrics("train"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    assert (result.path / "report.html").exists()


def test_an_item_that_does_not_fit_is_told_term_by_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")

    monkeypatch.setattr("afzal.recipes.warm_start.accumulate", broken)
    with pytest.raises(AfzalError) as caught:
        recipes.train(config.make("dpo", **settings(tmp_path, tmp_path / "run")))
    said = str(caught.value)
    assert "out of memory on cpu with" in said
    assert "the largest term is" in said
    assert "weights" in said
    assert "reference" in said
    assert "Tried to allocate 20.00 GiB" in said
    assert "more" not in said.split("why:")[1].split("\n")[0].split("GiB")[1]
    assert runs.open_run(tmp_path / "run").facts()["status"] == "failed"


_CHILD = """
import json, resource, sys
sys.path[:0] = [{tests!r}, {source!r}]
from test_train_retry import Scene
import torch
torch.set_num_threads(1)
scene = Scene(budget=100_000)
scene.feed = scene.feed.__class__({trees}, (), 24, 0, scene.feed.layout)
limit = {limit}
if limit:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
losses = [line["loss"] for line in scene.run() if line["kind"] == "train"]
print(json.dumps([losses, scene.said]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of address space is Linux's")
def test_real_allocations_that_fail_lead_to_the_same_losses():
    tests = str(Path(__file__).parent)
    given = {
        "tests": tests,
        "source": str(Path(recipes.__file__).parents[2]),
        "trees": "__import__('helpers_models').random_trees(24, longest=100)",
    }
    results = []
    for limit in (0, 60_000_000):
        code = f"import sys; sys.path.insert(0, {str(Path(tests).parent)!r})\n" + _CHILD.format(limit=limit, **given)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    (free, quiet), (tight, said) = results
    assert not quiet
    assert said
    for a, b in zip(free, tight, strict=True):
        assert abs(a - b) <= 1e-6
