"""The command that a report gives for the next step."""

from __future__ import annotations

import shlex
from typing import Any

import helpers_report as rr
import pytest

from afzal.health import Diagnosis, diagnose
from afzal.report.following import next_command


def facts(**changes: Any) -> dict[str, Any]:
    return rr.facts("dpo") | {"config": rr.config("dpo")} | changes


def alarm(severity: Any, **change: Any) -> Diagnosis:
    return Diagnosis("c", severity, "t", "e", "r", "x", change=change)


@pytest.mark.parametrize(
    ("told", "diagnoses", "expected"),
    [
        ({"status": "stopped"}, [], "afzal train runs/a --resume"),
        ({"status": "failed"}, [alarm("bad", lr=1e-5)], "afzal train runs/a --resume"),
        ({}, [alarm("bad", lr=1e-5)], "afzal train runs/a/run.yaml lr=1e-5 out=runs/a-2"),
        ({}, [alarm("watch", early_stop_patience=2)], "afzal train runs/a/run.yaml early_stop_patience=2 out=runs/a-2"),
        ({}, [alarm("bad")], "afzal report runs/a --open"),
        ({}, [alarm("good")], "afzal generate --model runs/a --prompt 'How are you?'"),
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
    assert next_command("runs/a", facts(**told), diagnoses) == expected
    assert shlex.split(expected)[0] == "afzal"


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
    said = next_command("runs/a", facts(), diagnose(metrics, facts()))
    assert said == "afzal train runs/a/run.yaml lr=0.001 out=runs/a-2"  # from 1e-4
