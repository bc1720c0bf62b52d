"""Diagnose a run: named checks with exact rules over its metrics say whether it is healthy, and if not, why.

:func:`diagnose` is a pure function of the lines of ``metrics.jsonl`` and the facts of ``run.json``. A check that has
the numbers it needs returns one :class:`Diagnosis`, ``good`` if it passed; a check that lacks them returns nothing, and
the report lists it as not checked. The limits at the top of each module are the complete rules; every diagnosis repeats
its rule in ``rule``. Numbers that allow no conclusion give an ``open`` diagnosis: no alarm, and no proof.

The limits are judgements, not laws. They are set so that healthy runs raise no alarm and the known failures of
preference training do; ``benchmarks/health_sim.py`` measures how often either goes wrong. "First" and "last" are
evaluations if there are two or more, else means over the first and last tenth of the training steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.health import behaviour, learning, overtraining, rollouts, start
from afzal.health import tasks as by_task
from afzal.health.curves import Curves, Diagnosis, Severity, accuracy_interval, interval_of
from afzal.health.facts import writes
from afzal.text import is_number, plural

__all__ = [
    "CHECKS",
    "Diagnosis",
    "Verdict",
    "accuracy_interval",
    "alarms",
    "diagnose",
    "interval_of",
    "not_checked",
    "up_to_kept_step",
    "verdict",
]

CHECKS: dict[str, Callable[[Curves], Diagnosis | None]] = {
    "end of the run": start.run_ended,
    "finite numbers": start.finite,
    "first loss": start.first_loss,
    "learning": learning.learning,
    "held-out loss": overtraining.held_out_loss,
    "likelihood of the chosen": overtraining.log_probs,
    "overfitting": overtraining.overfit,
    "distance to the start": overtraining.distance,
    "length of responses": behaviour.lengths,
    "endings of responses": behaviour.endings,
    "gradients": behaviour.gradients,
    "tasks": by_task.tasks,
    "reward": rollouts.reward,
    "conduct of the policy": rollouts.conduct,
    "size of the updates": rollouts.step_sizes,
}
"""The checks by name, in the order of the report."""

_ON_REWARDS = {"reward", "conduct of the policy", "size of the updates"}
_ON_DATA = {"first loss", "learning", "held-out loss", "likelihood of the chosen", "overfitting"}

_OF_WRITERS = {"distance to the start", "endings of responses", "likelihood of the chosen", "first loss"}

_RANK: dict[Severity, int] = {"bad": 0, "watch": 1, "open": 2, "good": 3}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``word`` is "healthy", "watch" or "not healthy"; ``sentence`` says why."""

    word: str
    severity: Severity
    sentence: str


def diagnose(metrics: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[Diagnosis]:
    """Diagnoses of all checks that could be made, alarms first.

    Args:
        metrics: lines of ``metrics.jsonl`` (kinds ``train``, ``eval`` and ``rollout``), in order of step.
        facts: contents of ``run.json``. ``config`` (the resolved configuration) refines the remedies; ``samples``
            (``before``/``after`` with ``length``, ``eos_rate`` and their ``_se``) replaces the evaluations' samples;
            ``kept_step`` means that the weights of an earlier step were kept, and later steps are not judged.
    """
    lines = up_to_kept_step(metrics, facts)
    train, held_out, rollouts = ([m for m in lines if m.get("kind") == kind] for kind in ("train", "eval", "rollout"))
    curves = Curves(train, held_out, facts, rollouts)
    diagnoses = [replace(d, check=name) for name, check in CHECKS.items() if (d := check(curves))]
    return sorted(diagnoses, key=lambda d: _RANK[d.severity])


def up_to_kept_step(metrics: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines up to the step whose weights were kept: all of them, unless the run stopped early."""
    kept_step = facts.get("kept_step")
    return [m for m in metrics if not is_number(kept_step) or not is_number(m.get("step")) or m["step"] <= kept_step]


def alarms(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """The diagnoses that are ``watch`` or ``bad``."""
    return [d for d in diagnoses if d.severity in ("watch", "bad")]


def verdict(diagnoses: Sequence[Diagnosis]) -> Verdict:
    """One word and one sentence for the run: healthy only if something shows that it learned."""
    raised = alarms(diagnoses)
    bad = [d.title for d in raised if d.severity == "bad"]
    if bad:
        return Verdict("not healthy", "bad", _sentence(bad))
    if raised:
        return Verdict("watch", "watch", _sentence([d.title for d in raised]))
    if not any(d.check in ("learning", "reward") and d.severity == "good" for d in diagnoses):
        return Verdict("watch", "watch", _sentence(["no measurement shows whether anything was learned"]))
    proof = [d.title for d in diagnoses if d.check in ("learning", "reward", "first loss")]
    unknown = [d.title for d in diagnoses if d.severity == "open"]
    checks = f"{plural(len(diagnoses) - len(unknown), 'check')} made, none raised an alarm"
    return Verdict("healthy", "good", _sentence([*proof, checks, *unknown]))


def not_checked(diagnoses: Iterable[Diagnosis], facts: Mapping[str, Any] | None = None) -> list[str]:
    """Names of the checks that apply to the run (on data or on rewards) but lacked the numbers they need.

    Args:
        facts: contents of ``run.json``; for a reward model, checks that do not apply to it are then left out.
    """
    done = {d.check for d in diagnoses}
    irrelevant: set[str] = (_ON_DATA if done & _ON_REWARDS else _ON_REWARDS) if done else set()
    if not writes(facts or {}):
        irrelevant = irrelevant | _OF_WRITERS
    if done and len(by_task.task_names(facts or {})) < 2:
        irrelevant = irrelevant | {"tasks"}
    return [name for name in CHECKS if name not in done | irrelevant]


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "."
