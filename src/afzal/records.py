"""Items, the votes on their responses, and the preferences derived from the votes.

Reading keeps everything: ties, strengths, ranks, scores, annotators, the order shown. Turning votes into training
signal is a separate step: :func:`preferences` for pairs, :func:`labels` for single responses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from operator import attrgetter
from typing import Any, Literal, TypeVar, dataclass_transform

from afzal.media import Media as Media
from afzal.media import media_in, part_to_json, part_to_row

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_class(cls: type[T]) -> type[T]:
    """Make a dataclass that is frozen for the type checker, and at run time by convention.

    A class that is frozen at run time sets every field through a call. That takes four times as long, and every row of
    a file needs several instances.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


Outcome = Literal["first", "second", "tie", "both_bad"]
RatingKind = Literal["score", "rank", "label"]

SWAPPED: dict[Outcome, Outcome] = {"first": "second", "second": "first", "tie": "tie", "both_bad": "both_bad"}
"""The outcome for the same two responses in the other order."""

P_FIRST: dict[Outcome, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}
"""The probability that the first response is better, by outcome."""


@value_class
class Message:
    """One turn. ``content`` is text, or typed parts: ``{"type": "text", "text": str}`` and, for an image or a sound,
    ``{"type": "image" | "audio", "media": Media}``.

    ``reasoning`` holds the reasoning before the content of an assistant's turn, if the source has it in a separate
    field (``reasoning_content``). The chat template renders it.
    """

    role: str
    content: str | tuple[Mapping[str, Any], ...]
    reasoning: str = ""


TEMPLATE_FIELDS = ("tools", "chat_template_kwargs")
"""Fields of ``Item.extra`` that a chat template reads in addition to the messages."""

Turns = str | tuple[Message, ...]
"""A text to continue verbatim, or a conversation to render with the model's chat template."""


def as_text(turns: Sequence[Message]) -> str:
    """A conversation as one text, for a model that continues texts: its turns, concatenated."""
    return "".join(str(turn.content) for turn in turns)


@value_class
class Response:
    """One answer to a prompt: a text continuation, or messages, in which the assistant's turns are the answer."""

    turns: Turns
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One opinion on two responses of an item.

    ``strength`` says how clear the preference was, in the source's units (larger is clearer). ``probability`` is a
    stated probability that the *first* is better, and overrides ``outcome``. ``weight`` multiplies the example's loss.
    ``shown_first`` is the index of the response that was displayed first, if recorded. ``both_bad`` is not a tie: it
    says nothing about the order. ``seconds`` is how long the vote took; ``id`` is its name in its source file, and
    ``at`` its time (ISO 8601).
    """

    first: int
    second: int
    outcome: Outcome
    strength: float | None = None
    probability: float | None = None
    weight: float = 1.0
    annotator: str | None = None
    axis: str | None = None
    shown_first: int | None = None
    seconds: float | None = None
    id: str | None = None
    at: str | None = None

    def swap(self) -> Comparison:
        """The same opinion with the two responses in the other order."""
        probability = None if self.probability is None else 1.0 - self.probability
        return self._with(self.second, self.first, SWAPPED[self.outcome], probability, self.shown_first)

    def between(self, first: int, second: int, shown_first: int | None) -> Comparison:
        """The same opinion with other response indices."""
        return self._with(first, second, self.outcome, self.probability, shown_first)

    def _with(
        self, first: int, second: int, outcome: Outcome, probability: float | None, shown: int | None
    ) -> Comparison:
        # a plain call, since dataclasses.replace is five times slower and this runs for every row of a file
        return Comparison(
            first,
            second,
            outcome,
            self.strength,
            probability,
            self.weight,
            self.annotator,
            self.axis,
            shown,
            self.seconds,
            self.id,
            self.at,
        )

    @property
    def p_first(self) -> float | None:
        """Probability that the first response is better; None if the vote does not order them."""
        return self.probability if self.probability is not None else P_FIRST.get(self.outcome)


@dataclass(frozen=True, slots=True)
class Rating:
    """One opinion on one response: a score (larger is better), a rank (0 is best) or a label (1 good, 0 bad).

    ``seconds``, ``id`` and ``at`` are as in :class:`Comparison`.
    """

    response: int
    value: float
    kind: RatingKind
    weight: float = 1.0
    annotator: str | None = None
    axis: str | None = None
    seconds: float | None = None
    id: str | None = None
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """One opinion that ranks K responses, which may be a subset of the item's.

    ``groups`` holds the responses from best to worst; those of one group are tied. ``shown`` lists the same responses
    in display order, if recorded. The other fields are as in :class:`Comparison`.
    """

    groups: tuple[tuple[int, ...], ...]
    shown: tuple[int, ...] | None = None
    weight: float = 1.0
    annotator: str | None = None
    axis: str | None = None
    seconds: float | None = None
    id: str | None = None
    at: str | None = None

    @property
    def ranked(self) -> tuple[int, ...]:
        """The responses that the ranking names, in ascending order."""
        return tuple(sorted(k for group in self.groups for k in group))

    def places(self) -> dict[int, float]:
        """The place of each response: 0 is the best, and tied responses share the mean of their places."""
        places, above = {}, 0
        for group in self.groups:
            places |= dict.fromkeys(group, above + (len(group) - 1) / 2)
            above += len(group)
        return places

    def comparisons(self) -> tuple[Comparison, ...]:
        """The ranking as C(K, 2) comparisons, the lower index first.

        Each has the ranking's weight: :func:`preferences` divides by the number of pairs. The seconds apply to the
        ranking as a whole and are left out.
        """
        places = self.places()
        order = {} if self.shown is None else {k: n for n, k in enumerate(self.shown)}
        pairs = []
        for i, j in combinations(sorted(places), 2):
            outcome: Outcome = "tie" if places[i] == places[j] else "first" if places[i] < places[j] else "second"
            shown = None if not order else i if order[i] < order[j] else j
            fields = self.weight, self.annotator, self.axis, shown, None, self.id, self.at
            pairs.append(Comparison(i, j, outcome, None, None, *fields))
        return tuple(pairs)


Vote = Comparison | Rating | Ranking


@value_class
class Item:
    """One prompt, K responses to it, and every vote cast on them.

    ``prompt`` and all responses are of one kind: all texts, or all conversations. ``where`` is ``file:line`` of the
    source row. Items of one ``group`` (default: one prompt) stay on the same side of a train/evaluation split.

    ``gold`` is the known truth in the form of votes; annotators are measured by it. It is separate from ``votes``, so
    it enters neither agreement nor :func:`preferences` by itself.
    """

    id: str
    prompt: Turns
    responses: tuple[Response, ...]
    votes: tuple[Vote, ...] = ()
    where: str = ""
    group: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    gold: tuple[Vote, ...] = ()

    @property
    def is_chat(self) -> bool:
        """Whether prompt and responses are conversations, not plain texts."""
        return not isinstance(self.prompt, str)

    @property
    def is_plain(self) -> bool:
        """Whether the prompt and all responses are texts (a text can also be answered by turns)."""
        if type(self.prompt) is not str:
            return False
        for response in self.responses:  # noqa: SIM110 - a generator takes far longer
            if type(response.turns) is not str:
                return False
        return True

    def placed(self, id: str, where: str, group: str, extra: Mapping[str, Any]) -> Item:
        """The same prompt, responses, votes and gold, with another id, place, group and extra fields."""
        return Item(id, self.prompt, self.responses, self.votes, where, group, extra, self.gold)


@dataclass(frozen=True, slots=True)
class Preference:
    """Response ``i`` is better than ``j`` with probability ``p``.

    ``weight`` multiplies the pair's loss and is its share in a mean loss. ``margin`` is the score gap or stated
    strength of i over j in the source's units, if there is one.
    """

    i: int
    j: int
    p: float = 1.0
    weight: float = 1.0
    margin: float | None = None

    def swap(self) -> Preference:
        """The same opinion about j and i: 1 - p, and the margin negated."""
        margin = None if self.margin is None else -self.margin
        return Preference(self.j, self.i, 1.0 - self.p, self.weight, margin)


def preferences(item: Item, axis: str | None = None) -> tuple[Preference, ...]:
    """Pairs of an item, the better response first (for p = 0.5, the lower index first).

    Comparisons of the same two responses are pooled: p is their weighted mean, so a 2:1 split of three annotators gives
    p = 2/3. The pair's weight is their mean weight, divided by the number of compared pairs. A ranking counts as the
    comparisons of its pairs. Without either, scores (or else ranks) order every pair of the K rated responses, each
    with weight 1 / C(K, 2); equal values give p = 0.5. So an item counts once, however many responses it has.

    Args:
        axis: use only votes on this axis (such as ``"safer"``); None uses votes on every axis.
    """
    votes = item.votes if axis is None else [v for v in item.votes if v.axis == axis]
    compared = _compared(votes)
    if compared:
        return compared
    for kind, sign in (("score", 1.0), ("rank", -1.0)):
        values = _mean_values([v for v in votes if isinstance(v, Rating) and v.kind == kind])
        if len(values) > 1:
            return _pairs_by_value({k: sign * v for k, v in values.items()})
    return ()


def labels(item: Item) -> tuple[bool | None, ...]:
    """Per response: True if desirable, False if undesirable, None if unknown.

    Stated labels take precedence. Otherwise a response that only wins is desirable; one that only loses, or that a
    "both bad" vote names, is undesirable. Ties and contradictory votes give None.
    """
    stated = _mean_values([v for v in item.votes if isinstance(v, Rating) and v.kind == "label"])
    if stated:
        return tuple(None if (m := stated.get(k)) in (None, 0.5) else m > 0.5 for k in range(len(item.responses)))
    won: dict[int, set[bool]] = {}
    for pair in preferences(item):
        if pair.p != 0.5:
            won.setdefault(pair.i, set()).add(True)
            won.setdefault(pair.j, set()).add(False)
    for vote in item.votes:
        if isinstance(vote, Comparison) and vote.p_first is None and vote.weight > 0:
            won.setdefault(vote.first, set()).add(False)
            won.setdefault(vote.second, set()).add(False)
    return tuple(next(iter(s)) if len(s := won.get(k, set())) == 1 else None for k in range(len(item.responses)))


def scores(item: Item, axis: str | None = None) -> tuple[float | None, ...]:
    """Per response: how good it is among its siblings (larger is better), or None if unknown.

    Scores take precedence, then negated ranks, then negated mean places in rankings (only if all rank the same
    responses and there are no comparisons). Otherwise comparisons (and the pairs of rankings) count if they are
    certain, decide every pair and agree on one order: the score is then the number of responses that each one beats.
    """
    votes = [v for v in item.votes if axis is None or v.axis == axis]
    for kind, sign in (("score", 1.0), ("rank", -1.0)):
        values = _mean_values([v for v in votes if isinstance(v, Rating) and v.kind == kind])
        if len(values) > 1:
            return tuple(sign * values[k] if k in values else None for k in range(len(item.responses)))
    places = _mean_places(votes)
    if places:
        return tuple(-places[k] if k in places else None for k in range(len(item.responses)))
    return _wins(_compared(votes), len(item.responses))


def axes_of(items: Iterable[Item]) -> list[str]:
    """The axes of the votes, sorted."""
    return sorted({v.axis for item in items for v in item.votes if v.axis is not None})


def pooled_axes(items: Iterable[Item]) -> str:
    """The axes whose votes would be pooled although each answers a separate question, as ``a, b``; "" for fewer than
    two."""
    axes = axes_of(items)
    return ", ".join(axes) if len(axes) > 1 else ""


def prompt_key(item: Item) -> str:
    """A stable hash of the item's group or prompt (white space and case folded); a split must not divide equal keys."""
    return hashlib.sha256(folded_prompt(item).encode()).hexdigest()[:16]


def folded_prompt(item: Item) -> str:
    """The item's group or prompt with white space and case folded: the text that :func:`prompt_key` hashes."""
    text = item.group or (item.prompt if isinstance(item.prompt, str) else json.dumps(turns_to_json(item.prompt)))
    if text.isprintable() and "  " not in text:  # the space is the only printable white space
        return text.casefold().strip()
    return " ".join(text.casefold().split())


def template_fields(item: Item) -> dict[str, Any]:
    """The fields of an item's row that the chat template reads in addition to the messages."""
    return {name: item.extra[name] for name in TEMPLATE_FIELDS if item.extra.get(name)}


def media_of(source: Item | Turns) -> tuple[Media, ...]:
    """The images and sounds of turns in reading order; for an item, those of the prompt, then of each response."""
    if isinstance(source, str):
        return ()
    if isinstance(source, Item):
        return tuple([m for turns in (source.prompt, *[r.turns for r in source.responses]) for m in media_of(turns)])
    if not [True for message in source if type(message.content) is not str]:
        return ()
    return tuple(media for message in source for media in media_in(message.content))


def turns_to_json(turns: Turns) -> str | list[dict[str, Any]]:
    """A text unchanged, messages as ``[{"role": ..., "content": ...}]``, with ``reasoning_content`` if there is any.

    This is the input of keys and hashes: an image or a sound appears as its kind and SHA-256, whatever its name.
    """
    return turns if isinstance(turns, str) else [_message_to_json(m, part_to_json) for m in turns]


def turns_to_row(turns: Turns) -> str | list[dict[str, Any]]:
    """Like :func:`turns_to_json`, for rows of files: an image or a sound also has its name, or its bytes."""
    return turns if isinstance(turns, str) else [_message_to_json(m, part_to_row) for m in turns]


def messages_of(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as dicts, for requests to servers; images and sounds stay :class:`afzal.media.Media`."""
    return [_message_to_json(m, dict) for m in turns]


def _message_to_json(m: Message, part_to_json: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    content = m.content if isinstance(m.content, str) else [part_to_json(part) for part in m.content]
    return {"role": m.role, "content": content} | ({"reasoning_content": m.reasoning} if m.reasoning else {})


def vote_values(vote: Vote) -> tuple[Any, ...]:
    """A vote as plain values: the name of its kind, then its fields in order."""
    kind = type(vote)
    values = _FIELDS[kind](vote)
    n, unset = _NOTES[kind]
    # fields that were not recorded are left out, so that the hash of rows without them never changes
    return kind.__name__, *(values[:n] if values[n:] == unset else values)


_FIELDS = {kind: attrgetter(*(field.name for field in fields(kind))) for kind in (Comparison, Rating, Ranking)}
_NOTES = {Comparison: (10, (None, None)), Rating: (6, (None, None, None)), Ranking: (6, (None, None))}


def comparisons(votes: Iterable[Vote]) -> Iterator[Comparison]:
    """Every comparison, including those that rankings imply."""
    for vote in votes:
        if isinstance(vote, Comparison):
            yield vote
        elif isinstance(vote, Ranking):
            yield from vote.comparisons()


def _compared(votes: Sequence[Vote]) -> tuple[Preference, ...]:
    if len(votes) == 1 and isinstance(vote := votes[0], Comparison):  # nearly every row of a file of pairs
        p = vote.p_first
        if p is None or vote.weight <= 0:
            return ()
        i, j, p = (vote.first, vote.second, p) if vote.first < vote.second else (vote.second, vote.first, 1.0 - p)
        return (_pooled(i, j, [(p, vote.weight, vote.strength)], 1),)
    by_pair: dict[tuple[int, int], list[tuple[float, float, float | None]]] = {}
    for vote in comparisons(votes):
        p, i, j = vote.p_first, vote.first, vote.second
        if p is not None and vote.weight > 0:
            pair, p = ((i, j), p) if i < j else ((j, i), 1.0 - p)
            by_pair.setdefault(pair, []).append((p, vote.weight, vote.strength))
    return tuple([_pooled(i, j, group, len(by_pair)) for (i, j), group in by_pair.items()])


def _pooled(i: int, j: int, group: list[tuple[float, float, float | None]], pairs: int) -> Preference:
    """One preference from the votes on i and j: (probability that i is better, weight, strength); ``pairs`` of the
    item's pairs were compared."""
    total = sum([weight for _, weight, _ in group])
    p = sum([weight * p for p, weight, _ in group]) / total
    strengths = [_signed(strength, p) for p, _, strength in group if strength is not None]
    margin = sum(strengths) / len(strengths) if strengths else None
    pair = Preference(i, j, p, total / len(group) / pairs, margin)
    return pair if p >= 0.5 else pair.swap()


def _signed(strength: float, p: float) -> float:
    return strength * (0.0 if p == 0.5 else 1.0 if p > 0.5 else -1.0)


def _mean_places(votes: Iterable[Vote]) -> dict[int, float]:
    """Mean place of each response; empty unless all comparing votes are rankings of the same responses."""
    counted = [v for v in votes if v.weight > 0 and not isinstance(v, Rating)]
    rankings = [v for v in counted if isinstance(v, Ranking)]
    if not rankings or len(rankings) < len(counted) or len({v.ranked for v in rankings}) > 1:
        return {}
    total = sum(v.weight for v in rankings)
    placed = [(v.weight / total, v.places()) for v in rankings]
    return {k: sum(share * places[k] for share, places in placed) for k in rankings[0].ranked}


def _wins(pairs: tuple[Preference, ...], n: int) -> tuple[float | None, ...]:
    """Number of responses beaten by each, if all pairs of the compared responses are certain and consistent; else
    None."""
    compared = sorted({k for q in pairs for k in (q.i, q.j)})
    wins = {k: float(sum(q.i == k for q in pairs)) for k in compared}
    complete = len(pairs) == len(compared) * (len(compared) - 1) // 2 and all(q.p == 1.0 for q in pairs)
    is_complete = complete and len(set(wins.values())) == len(compared)
    return tuple(wins[k] if is_complete and k in wins else None for k in range(n))


def _mean_values(ratings: list[Rating]) -> dict[int, float]:
    sums: dict[int, tuple[float, float]] = {}
    for r in ratings:
        total, weight = sums.get(r.response, (0.0, 0.0))
        sums[r.response] = (total + r.weight * r.value, weight + r.weight)
    return {k: total / weight for k, (total, weight) in sums.items() if weight > 0}


def _pairs_by_value(values: Mapping[int, float]) -> tuple[Preference, ...]:
    weight = 2.0 / (len(values) * (len(values) - 1))
    pairs = []
    for a, b in combinations(sorted(values), 2):
        i, j = (a, b) if values[a] >= values[b] else (b, a)
        gap = values[i] - values[j]
        pairs.append(Preference(i, j, 0.5 if gap == 0 else 1.0, weight, gap))
    return tuple(pairs)
