"""The key numbers, before and after, on held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afzal.health import interval_of, upto
from afzal.health.facts import kl_of, unit_of
from afzal.text import interval, is_number, number, signed


@dataclass(frozen=True, slots=True)
class Measure:
    """One row: value before and after with 95% intervals in words, where the run measured them.

    ``key`` is the measure's name in ``metrics.jsonl``, ``name`` the one that a reader sees.
    """

    key: str
    name: str
    meaning: str
    before: float | None
    after: float
    before_interval: str
    after_interval: str
    step_before: int | None
    step_after: int

    @property
    def change(self) -> str:
        return signed(self.after - self.before) if self.before is not None else ""

    def shown(self) -> dict[str, str]:
        before = number(self.before) if self.before is not None else ""
        return {"before": before, "after": number(self.after), "change": self.change}


_PAIRS = (
    ("reward", "Reward", "mean over answers to held-out prompts; larger is better"),
    ("objective", "Reward less the KL penalty", "what training raises"),
    ("rewards/accuracies", "Reward accuracy", "share of held-out pairs ranked as people did; larger is better"),
    ("rewards/margins", "Reward margin", "reward of chosen less rejected; larger is better"),
    ("loss", "Loss", "smaller is better"),
    ("perplexity", "Perplexity", "exp of the loss per token; smaller is better"),
    ("kl", "KL", "nats per answer that the policy wrote; larger is further away"),
    ("logps/chosen", "Log-prob of chosen", "nats per response; larger is more likely"),
    ("logps/rejected", "Log-prob of rejected", "nats per response"),
    ("samples/length", "Sample length", "tokens"),
    ("samples/eos_rate", "Samples that end", "share that stop before the token limit"),
)


def measures(metrics: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[Measure]:
    """First and last evaluation of each measure that the run has; with one evaluation, that alone."""
    held_out = [m for m in upto(metrics, facts) if m.get("kind") == "eval" and is_number(m.get("step"))]
    found = [_measure(held_out, name, title, meaning) for name, title, meaning in _named(facts)]
    return [m for m in found if m]


def _named(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [(n, kl_of(facts) if n == "kl" else t, m) for n, t, m in _PAIRS]
    if unit_of(facts) == "token":
        return [(n, t.replace("chosen", "responses"), m) for n, t, m in rows]
    if unit_of(facts) != "response":
        return rows
    words = (("chosen", "desirable"), ("rejected", "undesirable"))
    rewards = [(f"rewards/{k}", f"Reward of {w}", "β × log-ratio to the reference") for k, w in words]
    rows = [(n, t.replace("chosen", "desirable").replace("rejected", "undesirable"), m) for n, t, m in rows]
    return [*rewards, *rows]


def _measure(held_out: Sequence[Mapping[str, Any]], name: str, title: str, meaning: str) -> Measure | None:
    having = [m for m in held_out if is_number(m.get(name))]
    if not having:
        return None
    first, last = (having[0], having[-1]) if len(having) > 1 else (None, having[-1])
    return Measure(
        key=name,
        name=title,
        meaning=meaning,
        before=first[name] if first else None,
        after=last[name],
        before_interval=interval(*(interval_of(first, name) or (None, None))) if first else "",
        after_interval=interval(*(interval_of(last, name) or (None, None))),
        step_before=int(first["step"]) if first else None,
        step_after=int(last["step"]),
    )
