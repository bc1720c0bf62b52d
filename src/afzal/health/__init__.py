"""Is this training curve healthy, and if not, why: named checks with exact rules over the metrics of a run.

:func:`diagnose` is a pure function of the lines of ``metrics.jsonl`` and the facts of ``run.json``. A check that has
the numbers it needs gives one :class:`Diagnosis`, ``good`` when it passed; one that lacks them gives nothing, and the
report lists it as not checked. The limits stand at the top of each module and are the whole of the rules; every
diagnosis repeats its own in ``rule``. Numbers that allow no conclusion give an ``open`` one: no alarm, and no proof.

The limits are judgements, not laws: they were set so that healthy runs stay silent and the failures that preference
training is known for do not; ``benchmarks/health_sim.py`` measures how often either fails. "First" and "last" are
evaluations when there are two or more, else means over the first and last tenth of the training steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.health import behaviour, excess, learning, rollouts, start
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
    "upto",
    "verdict",
]

CHECKS: dict[str, Callable[[Curves], Diagnosis | None]] = {
    "end of the run": start.run_ended,
    "finite numbers": start.finite,
    "first loss": start.first_loss,
    "learning": learning.learning,
    "held-out loss": excess.held_out_loss,
    "likelihood of the chosen": excess.log_probs,
    "overfitting": excess.overfit,
    "distance to the start": excess.distance,
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
    """Every check that could be made, alarms first.

    Args:
        metrics: lines of ``metrics.jsonl`` (kinds ``train``, ``eval`` and ``rollout``), in order of step.
        facts: contents of ``run.json``. ``config`` (the resolved configuration) sharpens the remedies; ``samples``
            (``before``/``after`` with ``length``, ``eos_rate`` and their ``_se``) stands in for the evaluations' own;
            with ``kept_step`` the weights of an earlier step were kept, and what came later is not judged.
    """
    kept = upto(metrics, facts)
    train, held_out, rolled = ([m for m in kept if m.get("kind") == kind] for kind in ("train", "eval", "rollout"))
    curves = Curves(train, held_out, facts, rolled)
    found = [replace(d, check=name) for name, check in CHECKS.items() if (d := check(curves))]
    return sorted(found, key=lambda d: _RANK[d.severity])


def upto(metrics: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines up to the step whose weights were kept: all of them, unless the run stopped early."""
    kept = facts.get("kept_step")
    return [m for m in metrics if not is_number(kept) or not is_number(m.get("step")) or m["step"] <= kept]


def alarms(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Those that are ``watch`` or ``bad``."""
    return [d for d in diagnoses if d.severity in ("watch", "bad")]


def verdict(diagnoses: Sequence[Diagnosis]) -> Verdict:
    """One word and one sentence for the whole run: healthy only where something shows that it learned."""
    raised = alarms(diagnoses)
    bad = [d.title for d in raised if d.severity == "bad"]
    if bad:
        return Verdict("not healthy", "bad", _sentence(bad))
    if raised:
        return Verdict("watch", "watch", _sentence([d.title for d in raised]))
    if not any(d.check in ("learning", "reward") and d.severity == "good" for d in diagnoses):
        return Verdict("watch", "watch", _sentence(["nothing was measured that shows whether anything was learned"]))
    proof = [d.title for d in diagnoses if d.check in ("learning", "reward", "first loss")]
    unknown = [d.title for d in diagnoses if d.severity == "open"]
    checks = f"{plural(len(diagnoses) - len(unknown), 'check')} made, none raised an alarm"
    return Verdict("healthy", "good", _sentence([*proof, checks, *unknown]))


def not_checked(diagnoses: Iterable[Diagnosis], facts: Mapping[str, Any] | None = None) -> list[str]:
    """Names of the checks that lacked the numbers they need; of the run's own kind, on data or on rewards.

    Args:
        facts: contents of ``run.json``; what a reward model cannot be asked is then left out for one.
    """
    made = {d.check for d in diagnoses}
    other: set[str] = (_ON_DATA if made & _ON_REWARDS else _ON_REWARDS) if made else set()
    if not writes(facts or {}):
        other = other | _OF_WRITERS
    if made and len(by_task.task_names(facts or {})) < 2:
        other = other | {"tasks"}
    return [name for name in CHECKS if name not in made | other]


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "."
