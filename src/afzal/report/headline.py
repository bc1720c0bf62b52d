"""The key numbers before and after training, on held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afzal.health import interval_of, up_to_kept_step
from afzal.health.facts import kl_of, unit_of
from afzal.text import interval, is_number, number, signed


@dataclass(frozen=True, slots=True)
class Measure:
    """One row: the value before and after, with 95% intervals as text if the run measured them.

    ``key`` is the measure's name in ``metrics.jsonl``, ``name`` its display name.
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
    ("objective", "Reward minus the KL penalty", "the quantity that training maximises"),
    ("rewards/accuracies", "Reward accuracy", "share of held-out pairs ranked as people did; larger is better"),
    ("rewards/margins", "Reward margin", "reward of chosen minus rejected; larger is better"),
    ("loss", "Loss", "smaller is better"),
    ("perplexity", "Perplexity", "exp of the loss per token; smaller is better"),
    ("kl", "KL", "nats per answer of the policy; larger is further away"),
    ("logps/chosen", "Log-prob of chosen", "nats per response; larger is more likely"),
    ("logps/rejected", "Log-prob of rejected", "nats per response"),
    ("samples/length", "Sample length", "tokens"),
    ("samples/eos_rate", "Samples that end", "share that stop before the token limit"),
)


def measures(metrics: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[Measure]:
    """The first and last evaluation of each measure that the run has; only the last if there is just one."""
    held_out = [m for m in up_to_kept_step(metrics, facts) if m.get("kind") == "eval" and is_number(m.get("step"))]
    candidates = [_measure(held_out, name, title, meaning) for name, title, meaning in _named(facts)]
    return [m for m in candidates if m]


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
    evaluations = [m for m in held_out if is_number(m.get(name))]
    if not evaluations:
        return None
    first, last = (evaluations[0], evaluations[-1]) if len(evaluations) > 1 else (None, evaluations[-1])
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
