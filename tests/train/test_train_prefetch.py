"""Updates made ahead are the updates, in order, on demand, after a resume, and with their errors."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers_models import make, random_trees

from afzal import objectives
from afzal.errors import AfzalError
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.train import loop
from afzal.train.feed import Feed, Layout, Update
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, trainable
from afzal.train.prefetch import PrefetchingFeed, with_prefetch

LAYOUT = Layout("shared", 80)


def feed() -> Feed:
    return Feed(random_trees(10), (), 4, 0, LAYOUT)


def same(a: Update, b: Update) -> bool:
    pairs = zip(a.batches, b.batches, strict=True)
    return a.item_ids == b.item_ids and all(torch.equal(x.ids, y.ids) for x, y in pairs)


class Watched:
    """A feed that records which thread made each update, and fails at one."""

    def __init__(self, fails_at: int = -1) -> None:
        self.feed, self.fails_at = feed(), fails_at
        self.made: list[tuple[int, bool]] = []

    def update(self, step: int) -> Update:
        self.made.append((step, threading.current_thread() is threading.main_thread()))
        if step == self.fails_at:
            raise AfzalError("an update that cannot be made")
        return self.feed.update(step)


@pytest.mark.parametrize("start", [0, 3])
def test_updates_made_ahead_are_the_updates(start: int):
    plain, ahead = feed(), PrefetchingFeed(Watched(), 7)
    for step in range(start, 7):
        assert same(ahead.update(step), plain.update(step))
    made = ahead.feed.made
    assert made == [(start, True), *((step, False) for step in range(start + 1, 7))], "only the first is waited for"


def test_an_update_asked_for_out_of_turn_is_made_on_the_spot():
    plain, ahead = feed(), PrefetchingFeed(Watched(), 100)
    for step in (0, 5, 5, 2, 3):
        assert same(ahead.update(step), plain.update(step))


def test_nothing_is_made_beyond_the_last_update():
    ahead = PrefetchingFeed(Watched(), 2)
    ahead.update(0)
    ahead.update(1)
    assert [step for step, _ in ahead.feed.made] == [0, 1]


def test_an_error_comes_with_its_own_update():
    ahead = PrefetchingFeed(Watched(fails_at=2), 5)
    ahead.update(0)
    ahead.update(1)
    with pytest.raises(AfzalError, match="cannot be made"):
        ahead.update(2)


def test_only_fixed_data_on_a_gpu_is_read_ahead():
    assert with_prefetch(plain := feed(), 5) is plain
    on_gpu = Feed(random_trees(4), (), 4, 0, Layout("shared", 80, torch.device("cuda")))
    assert isinstance(with_prefetch(on_gpu, 5), PrefetchingFeed)
    rollouts = type("Rollouts", (), {"layout": on_gpu.layout})()
    assert with_prefetch(rollouts, 5) is rollouts


@pytest.mark.parametrize("batch_size", [3, 4])
def test_a_run_with_updates_made_ahead_ends_with_the_same_bits(batch_size: int, monkeypatch: pytest.MonkeyPatch):
    def run() -> dict[str, torch.Tensor]:
        model = make("llama")
        choose_sharing(model)
        method = Method.of(objectives.get("dpo"), {"beta": 0.1}, live_reference(model))
        given = Feed(random_trees(10), (), batch_size, 0, LAYOUT)
        settings = Settings(steps=6, lr=1e-3)
        fit(model, method, given, make_optimizer(trainable(model).values()), settings, hooks=Hooks(), state=State())
        return model.state_dict()

    plain = run()
    monkeypatch.setattr(loop, "with_prefetch", PrefetchingFeed)
    ahead = run()
    assert all(torch.equal(ahead[name], plain[name]) for name in plain)
