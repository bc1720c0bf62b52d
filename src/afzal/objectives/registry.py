"""The registry of objectives: each a function with the facts that the loop reads about it.

An objective is a pure function

    fn(policy: Scored, reference: Scored | None, pairs: Pairs, *, <parameters with defaults>) -> (losses, rewards)

that returns one unreduced loss per unit (pair, response, group or token, in nats or the objective's own measure) and
detached rewards ``[B]``. It never sees a model, a configuration or a device. The loop divides the weighted sum of
losses by a number for the full update, so accumulation and data parallelism are exact.

Two parameters are not hyper-parameters and are filled in by the loop: ``statistic`` (see :attr:`Objective.statistic`)
and ``state`` (see :attr:`Objective.initial_state`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor

from .functions import load_function
from .inputs import Pairs, Scored
from .metrics import Tally
from .statistics import Statistic, compares_with_reference

Unit = Literal["pair", "response", "group", "token"]
Bound = Literal["both", "below", "none"]
LossFunction = Callable[..., tuple[Tensor, Tensor]]
State = Mapping[str, float]

_FILLED_IN = ("statistic", "state")
_USES: dict[Unit, tuple[str, ...]] = {
    "pair": ("p", "weight"),
    "response": ("labels",),
    "group": ("score",),
    "token": ("labels",),
}


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers a parameter may take; ``brackets`` as in mathematics, such as ``[)``."""

    low: float = -math.inf
    high: float = math.inf
    brackets: str = "()"

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.brackets[0] == "[" else value > self.low
        return above and (value <= self.high if self.brackets[1] == "]" else value < self.high)

    def __str__(self) -> str:
        return f"in {self.brackets[0]}{self.low:g}, {self.high:g}{self.brackets[1]}"


FINITE = Interval()
POSITIVE = Interval(0, math.inf, "()")
NON_NEGATIVE = Interval(0, math.inf, "[)")
FRACTION = Interval(0, 1, "[]")
LABEL_NOISE = Interval(0, 0.5, "[)")

Limit = Interval | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Objective:
    """Facts about one objective.

    Attributes:
        unit: what each loss belongs to, and what losses are averaged over.
        needs_reference: whether reference log-probs are used; without it ``reference`` is None.
        at_reference: parameters -> the mean loss if policy equals reference; None if it depends on the data.
        formula: the loss in one line of text.
        paper: source of the formula.
        uses: the data fields it uses: ``p``, ``weight``, ``margin``, ``score``, ``labels``.
        couples_batch: the loss of one unit depends on the others of its update.
        length_normalised: log-probs enter per token, so that beta has another scale.
        shift_invariant: adding a constant per prompt to the summed log-probs changes no loss.
        bounded: whether single losses are bounded ``below``, on ``both`` sides, or not (``none``).
        statistics: additional per-token numbers it needs from the logits.
        extras: additional per-token numbers it needs that do not come from the logits: ``piece_log_ratio``,
            ``changed``.
        statistic: ``(policy, reference) -> (sum, count)`` over mismatched prompt/response rows, pooled over the full
            update and passed to ``fn`` as ``statistic`` = sum / count.
        initial_state: parameters -> the running numbers that ``fn`` gets as ``state``, without gradient.
        next_state: ``(state, policy, reference, pairs, **parameters) -> state`` after an update.
        learnable: parameters that may be learned as one shared scalar, with their infimum.
        limits: allowed parameter values; by default ``beta`` is positive and any other number finite.
        scores: what ``Scored`` holds: a ``policy``'s log-probs, a ``reward`` model's scores, or a policy's log-probs on
            its own answers, with their rollout numbers (``rollout``).
        metrics: ``(policy, pairs, **parameters) -> sums and counts`` of a batch, replacing the shared metrics.
    """

    name: str
    fn: LossFunction
    unit: Unit
    needs_reference: bool
    at_reference: Callable[[Mapping[str, Any]], float | None]
    formula: str = ""
    paper: str = ""
    uses: frozenset[str] = frozenset()
    couples_batch: bool = False
    length_normalised: bool = False
    shift_invariant: bool = False
    bounded: Bound = "below"
    statistics: tuple[Statistic, ...] = ()
    extras: tuple[str, ...] = ()
    statistic: Callable[[Scored, Scored], tuple[Tensor, Tensor]] | None = None
    initial_state: Callable[[Mapping[str, Any]], dict[str, float]] | None = None
    next_state: Callable[..., dict[str, float]] | None = None
    learnable: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    scores: Literal["policy", "reward", "rollout"] = "policy"
    metrics: Callable[..., Tally] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters and their defaults, read from the signature."""
        keyword = inspect.Parameter.KEYWORD_ONLY
        signature = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in signature if p.kind is keyword and p.name not in _FILLED_IN}

    @property
    def all_extras(self) -> tuple[str, ...]:
        """Names of everything it reads from ``Scored.extras``."""
        return (*(fn.__name__ for fn in self.statistics), *self.extras)

    @property
    def needs_live_reference(self) -> bool:
        """Whether it needs the reference's logits, which a cached reference does not have."""
        return any(compares_with_reference(statistic) for statistic in self.statistics)

    def limit(self, parameter: str) -> Limit:
        """The allowed values of a parameter: an interval, or words."""
        return self.limits.get(parameter, POSITIVE if parameter == "beta" else FINITE)


REGISTRY: dict[str, Objective] = {}
ALIASES: dict[str, str] = {}


def objective(
    name: str,
    *,
    unit: Unit,
    needs_reference: bool,
    at_reference: float | Callable[[Mapping[str, Any]], float | None] | None = None,
    uses: tuple[str, ...] | None = None,
    aliases: tuple[str, ...] = (),
    **facts: Any,
) -> Callable[[LossFunction], LossFunction]:
    """Register a function under ``name`` (and ``aliases``) and return it unchanged.

    Args:
        at_reference: as in :class:`Objective`, or a plain number.
        uses: default: ``p`` and ``weight`` of pairs, ``labels`` of responses and tokens, ``score`` of groups.
        facts: the other attributes of :class:`Objective`.

    Raises:
        ValueError: another function already has the name or an alias.
    """
    known = at_reference if callable(at_reference) else lambda _: at_reference
    used_fields = frozenset(_USES[unit] if uses is None else uses)

    def register(fn: LossFunction) -> LossFunction:
        for key in (name, *aliases):
            if not _is_again(fn, REGISTRY.get(ALIASES.get(key, key))):
                raise ValueError(f"objective {key!r} is registered twice")
        REGISTRY[name] = Objective(name, fn, unit, needs_reference, known, uses=used_fields, **facts)
        ALIASES.update(dict.fromkeys(aliases, name))
        return fn

    return register


def _is_again(fn: LossFunction, before: Objective | None) -> bool:
    """Whether a name is free, or taken by the same definition, read again after a change."""
    return before is None or (before.fn.__module__, before.fn.__qualname__) == (fn.__module__, fn.__qualname__)


def get(name: str) -> Objective:
    """The objective with that name or alias, or the function decorated with ``@objective`` that ``module:function`` or
    ``file.py:function`` names.

    Raises:
        ValueError: no such objective; suggests those with similar names.
    """
    if ":" in name:
        return _imported(name)
    if (real := ALIASES.get(name, name)) in REGISTRY:
        return REGISTRY[real]
    close = get_close_matches(name, [*REGISTRY, *ALIASES], n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"unknown objective {name!r}{hint}")


def _imported(path: str) -> Objective:
    fn = load_function(path)
    registered = next((o for o in REGISTRY.values() if o.fn is fn), None)
    if registered is None:
        raise ValueError(f"{path!r} is a function, not an objective: decorate it with @afzal.objectives.objective(...)")
    return registered


def unit_weights(unit: Unit, pairs: Pairs, response_of: Tensor) -> Tensor:
    """Weight of each unit of a batch, ``[n]``: it multiplies the unit's loss, and is its weight in a mean loss.

    Responses count if they are labelled, groups if at least two of their responses have a score, and tokens if their
    response is good or there is no opinion on it.
    """
    if unit == "pair":
        return pairs.weight
    if unit == "response":
        return (~pairs.desirable.isnan()).to(torch.float32)
    if unit == "group":
        known = (~pairs.score.isnan()).to(torch.float32)
        return (known.new_zeros(pairs.n_groups).index_add(0, pairs.group_of, known) >= 2).to(torch.float32)
    if not len(pairs.desirable):
        return torch.ones(response_of.shape, device=response_of.device)
    compared = torch.zeros_like(pairs.desirable, dtype=torch.bool)
    compared[pairs.yw_idxs] = True
    compared[pairs.yl_idxs] = True
    example = (pairs.desirable == 1) | (pairs.desirable.isnan() & ~compared)
    return example.to(torch.float32)[response_of]
