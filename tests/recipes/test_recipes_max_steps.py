"""The note that max_steps is never reached, and the setting that reaches it."""

from __future__ import annotations

import pytest

from afzal import config
from afzal.recipes import max_steps_note


@pytest.mark.parametrize(("limit", "remedy"), [(12, "epochs=3"), (13, "epochs=4"), (16, "epochs=4")])
def test_the_epochs_that_reach_max_steps_are_whole(limit: int, remedy: str):
    dpo = config.make("dpo", model="M", data="D", epochs=2, max_steps=limit)
    note = f"max_steps {limit} is not reached: epochs=2 ends after 8 updates; {remedy} does not"
    assert max_steps_note(dpo, 8, 4.0) == note


def test_a_limit_that_ends_the_run_needs_no_note():
    assert max_steps_note(config.make("dpo", model="M", data="D", max_steps=8), 8, 4.0) == ""
    assert max_steps_note(config.make("dpo", model="M", data="D"), 8, 4.0) == ""


@pytest.mark.parametrize(("limit", "remedy"), [(24, "iterations=4"), (25, "iterations=5")])
def test_iterations_have_several_updates(limit: int, remedy: str):
    given = {"ppo_epochs": 3, "minibatches": 2, "iterations": 2, "batch_size": 8}
    ppo = config.make("ppo", model="M", data="D", reward="R", max_steps=limit, **given)
    note = f"max_steps {limit} is not reached: iterations=2 ends after 12 updates; {remedy} does not"
    assert max_steps_note(ppo, 12, 1.0) == note
