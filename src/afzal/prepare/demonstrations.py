"""Demonstrations beside samples of the reference: what a reward is inferred from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from afzal import data
from afzal.drops import Drop
from afzal.errors import AfzalError
from afzal.records import Comparison, Item, Rating, Response, Turns, as_text, labels, turns_to_json

Samples = Mapping[str, Sequence[Response]]
"""Responses of the reference, by prompt."""

_FEWEST = 10  # prompts from which the lengths of answers say something
_TELLS = 0.9  # share of the pairs that length alone tells apart, from which a person should hear of it


def read_samples(source: str) -> Samples:
    """Every response of a file, by its prompt; repeats stay, since they are independent draws.

    Raises:
        AfzalError: the file cannot be read, or holds no response.
    """
    found: dict[str, list[Response]] = {}
    for item in data.read(source).items:
        found.setdefault(_key(item.prompt), []).extend(item.responses)
    if not any(found.values()):
        raise AfzalError(
            "there are no samples",
            where=source,
            remedy="afzal generate --model REFERENCE --prompts DATA --n 8 --out FILE",
        )
    return found


def beside(items: Sequence[Item], samples: Samples) -> tuple[list[Item], list[Drop]]:
    """One item per prompt: its demonstrations, then its samples; and the items that have one of them only.

    A demonstration is scored 1 and labelled good, a sample 0 and bad. Besides, demonstrations are preferred to samples
    in as many pairs as there are of the more numerous of the two, each response in turn, but for pairs of equal texts.
    Of an item with opinions, the good responses are the demonstrations; of one without, all are.
    """
    kept: dict[str, Item] = {}
    shown: dict[str, list[Response]] = {}
    lost = []
    for item in items:
        key, good = _key(item.prompt), _demonstrations(item)
        if not good or not samples.get(key):
            reason = "no_sample" if good else "no_demonstration"
            detail = "the reference has no answer to this prompt" if good else "no response is a good one"
            lost.append(Drop(item.where, item.id, reason, detail))
            continue
        kept.setdefault(key, item)
        shown.setdefault(key, []).extend(good)
    return [_item(item, shown[key], samples[key]) for key, item in kept.items()], lost


def unanswered(items: Iterable[Item], samples: Samples) -> int:
    """Samples of prompts for which there is no demonstration: they teach nothing."""
    known = {_key(item.prompt) for item in items}
    return sum(len(drawn) for key, drawn in samples.items() if key not in known)


def length_note(items: Sequence[Item]) -> str:
    """What to say where length alone tells demonstrations from samples; empty where it does not.

    Lengths are in characters, and every prompt counts alike. Below :data:`_FEWEST` prompts nothing is said.

    Args:
        items: as :func:`beside` makes them.
    """
    if len(items) < _FEWEST:
        return ""
    longer = sum(_longer(item) for item in items) / len(items)
    share, word = max((longer, "longer"), (1 - longer, "shorter"))
    if share < _TELLS:
        return ""
    return (
        f"a demonstration is {word} than a sample of its prompt in {100 * share:.0f}% of the cases, so that the reward "
        "may be of length alone: draw samples that are as long (afzal generate --max-new-tokens)"
    )


def _longer(item: Item) -> float:
    """The share of pairs of a demonstration and a sample in which the demonstration is longer; equal ones are half."""
    lengths = [_characters(response.turns) for response in item.responses]
    good = labels(item)
    shown = [n for n, label in zip(lengths, good, strict=True) if label]
    drawn = [n for n, label in zip(lengths, good, strict=True) if not label]
    wins = sum((a > b) + (a == b) / 2 for a in shown for b in drawn)
    return wins / (len(shown) * len(drawn))


def _characters(turns: Turns) -> int:
    return len(turns if isinstance(turns, str) else as_text(turns))


def _demonstrations(item: Item) -> list[Response]:
    good = labels(item) if item.votes else [True] * len(item.responses)
    return [response for response, label in zip(item.responses, good, strict=True) if label]


def _item(item: Item, shown: Sequence[Response], drawn: Sequence[Response]) -> Item:
    n = len(shown)
    responses = (*shown, *drawn)
    ratings = [Rating(k, float(k < n), kind) for kind in ("score", "label") for k in range(len(responses))]
    turns = [
        (k % n, k % len(drawn)) for k in range(max(n, len(drawn)))
    ]  # not all D x S, which a prompt may have many of
    compared = [Comparison(d, n + s, "first") for d, s in turns if shown[d].turns != drawn[s].turns]
    return replace(item, responses=responses, votes=(*ratings, *compared), gold=())


def _key(prompt: Turns) -> str:
    return json.dumps(turns_to_json(prompt), sort_keys=True)
