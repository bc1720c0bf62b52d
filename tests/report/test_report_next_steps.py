"""The commands that a report suggests as next steps."""

from __future__ import annotations

import shlex
from typing import Any

import helpers_report as rr
import pytest

from afzal.health import Diagnosis, diagnose
from afzal.report.next_steps import next_steps


def facts(**changes: Any) -> dict[str, Any]:
    return rr.facts("dpo") | {"config": rr.config("dpo")} | changes


def commands(told: dict[str, Any], diagnoses: list[Diagnosis], audit: dict[str, Any] | None = None) -> list[str]:
    return [step.command for step in next_steps("runs/a", facts(**told), diagnoses, audit)]


ROUNDS = {"method": "iterate", "config": {"rounds": 3}}
START = {"model": {"path": "runs/sft"}}
CHAT = "afzal chat runs/a --against runs/sft --blind"  # the start is named if it is no local folder


def alarm(severity: Any, **change: Any) -> Diagnosis:
    return Diagnosis("c", severity, "t", "e", "r", "x", change=change)


@pytest.mark.parametrize(
    ("told", "diagnoses", "expected"),
    [
        ({"status": "stopped"}, [], "afzal train runs/a --resume"),
        ({"status": "failed"}, [alarm("bad", lr=1e-5)], "afzal train runs/a --resume"),
        ({"status": "stopped", **ROUNDS}, [], "afzal iterate runs/a --resume"),
        (ROUNDS, [alarm("bad", lr=1e-5)], "afzal iterate runs/a/run.yaml lr=1e-5 out=runs/a-2"),
        ({}, [alarm("bad", lr=1e-5)], "afzal train runs/a/run.yaml lr=1e-5 out=runs/a-2"),
        ({}, [alarm("watch", early_stop_patience=2)], "afzal train runs/a/run.yaml early_stop_patience=2 out=runs/a-2"),
        ({}, [alarm("bad")], "afzal report runs/a --open"),
        ({"model": {}}, [alarm("good")], "afzal generate --model runs/a --prompt 'How are you?'"),
        (START, [alarm("good")], CHAT),
        (
            {"method": "sft", "data": {"source": "my prefs.jsonl"}},
            [],
            "afzal train dpo --model runs/a --data 'my prefs.jsonl'",
        ),
        (
            {"method": "reward", "data": {"source": "p.jsonl"}},
            [],
            "afzal score --model runs/a --data p.jsonl --out scores.jsonl",
        ),
    ],
)
def test_what_to_run_next(told: dict[str, Any], diagnoses: list[Diagnosis], expected: str):
    assert commands(told, diagnoses)[0] == expected
    assert shlex.split(expected)[0] == "afzal"


def test_a_run_that_held_a_file_out_is_judged_on_it_and_an_adapter_is_exported():
    config = rr.config("dpo") | {"eval_data": "held out.jsonl", "adapter": "lora"}
    assert commands({**START, "config": config}, []) == [
        CHAT,
        "afzal judge runs/a --against runs/sft --prompts 'held out.jsonl'",
        "afzal export runs/a --out runs/a-merged",
    ]
    assert commands({**START, "config": config | {"adapter": "prefix"}}, [])[2:] == []  # it cannot be merged


def test_a_run_on_images_is_voted_on_where_they_are_shown():
    """A chat takes only text. `afzal judge` without a judge serves the page, which shows images and plays sounds."""
    told = {**START, "data": {"source": "p.jsonl", "eval": 4, "media": 12}}
    judged = "afzal judge runs/a --against runs/sft --prompts"
    assert commands(told, []) == [f"{judged} runs/a/samples.jsonl"]
    held_out = rr.config("dpo") | {"eval_data": "held.jsonl"}
    assert commands({**told, "config": held_out}, []) == [f"{judged} held.jsonl"]
    assert commands({**told, "data": told["data"] | {"media": 0}}, []) == [CHAT]
    assert commands({**told, "data": told["data"] | {"eval": 0}}, []) == ["afzal report runs/a --open"]


def test_demonstrations_alone_are_not_proposed_to_dpo_and_a_file_is_read_as_it_was():
    sft = {**START, "method": "sft", "data": {"source": "p.jsonl"}}
    config = rr.config("sft") | {"columns": {"chosen": "good", "rejected": "bad"}, "eos_token": "<s>"}
    read = "--columns chosen=good,rejected=bad --eos-token '<s>'"
    assert commands({**sft, "config": config}, [], {"pairs": 7}) == [
        f"afzal train dpo --model runs/a --data p.jsonl {read}",
        CHAT,
    ]
    assert commands(sft, [], {"pairs": 0}) == [CHAT]


def test_a_reward_model_is_learned_from_and_rounds_name_their_best_policy():
    told = {**START, "method": "reward", "data": {"source": "p.jsonl"}}
    assert commands(told, [])[1] == "afzal train rloo --model runs/sft --data p.jsonl --reward runs/a"
    rounds = {**START, **ROUNDS, "best": "runs/a/rounds/001/run"}
    assert commands(rounds, []) == ["afzal chat runs/a/rounds/001/run --against runs/sft --blind"]
    assert commands({**rounds, "best": "runs/sft"}, []) == ["afzal report runs/a --open"]


def test_a_run_that_learned_nothing_is_repeated_with_ten_times_the_rate():
    metrics = rr.dpo_metrics(
        noise=0.0,
        loss=lambda t: rr.LN2 - 1e-4 * t,
        margin=lambda t: 2e-3 * t,
        chosen_fall=lambda t: 0.0,
        gap=lambda t: 0.02 * t,
        kl=lambda t: 1e-3 * t,
        accuracy=lambda t: 0.5,
    )
    (said,) = commands({}, diagnose(metrics, facts()))
    assert said == "afzal train runs/a/run.yaml lr=0.001 out=runs/a-2"  # from 1e-4
