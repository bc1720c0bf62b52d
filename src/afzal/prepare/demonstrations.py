"""Combine demonstrations with samples of the reference, to infer a reward from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from afzal import data
from afzal.drops import Drop
from afzal.errors import AfzalError
from afzal.records import Comparison, Item, Rating, Response, Turns, as_text, labels, turns_to_json

Samples = Mapping[str, Sequence[Response]]
"""The reference's responses by prompt."""

_FEWEST = 10  # prompts below which answer lengths are too few to judge
_TELLS = 0.9  # note from this share of pairs on in which length alone separates demonstrations from samples


def read_samples(source: str) -> Samples:
    """Every response of a file, by its prompt. Duplicates stay, since they are independent draws.

    Raises:
        AfzalError: the file cannot be read, or holds no response.
    """
    samples: dict[str, list[Response]] = {}
    for item in data.read(source).items:
        samples.setdefault(_key(item.prompt), []).extend(item.responses)
    if not any(samples.values()):
        raise AfzalError(
            "there are no samples",
            where=source,
            remedy="afzal generate --model REFERENCE --prompts DATA --n 8 --out FILE",
        )
    return samples


def with_samples(items: Sequence[Item], samples: Samples) -> tuple[list[Item], list[Drop]]:
    """One item per prompt with its demonstrations, then its samples; items that lack either are dropped.

    A demonstration is scored 1 and labelled good, a sample 0 and bad. Demonstrations are also preferred to samples in
    max(D, S) pairs, cycling through both; pairs of equal texts are skipped. In an item with opinions, the good
    responses are the demonstrations; in one without, all responses are.
    """
    first_item: dict[str, Item] = {}
    demonstrations: dict[str, list[Response]] = {}
    drops = []
    for item in items:
        key, good = _key(item.prompt), _demonstrations(item)
        if not good or not samples.get(key):
            reason = "no_sample" if good else "no_demonstration"
            detail = "the reference has no answer to this prompt" if good else "no response is a good one"
            drops.append(Drop(item.where, item.id, reason, detail))
            continue
        first_item.setdefault(key, item)
        demonstrations.setdefault(key, []).extend(good)
    return [_item(item, demonstrations[key], samples[key]) for key, item in first_item.items()], drops


def count_unanswered(items: Iterable[Item], samples: Samples) -> int:
    """The number of samples whose prompts have no demonstration; they teach nothing."""
    demonstrated = {_key(item.prompt) for item in items}
    return sum(len(responses) for key, responses in samples.items() if key not in demonstrated)


def length_note(items: Sequence[Item]) -> str:
    """A note if length alone separates demonstrations from samples; else empty.

    Lengths are in characters, and every prompt counts the same. Empty for fewer than :data:`_FEWEST` prompts.

    Args:
        items: as :func:`with_samples` makes them.
    """
    if len(items) < _FEWEST:
        return ""
    longer = sum(_longer(item) for item in items) / len(items)
    share, word = max((longer, "longer"), (1 - longer, "shorter"))
    if share < _TELLS:
        return ""
    return (
        f"demonstrations are {word} than samples of the same prompt in {100 * share:.0f}% of the cases, so the reward "
        "may learn length alone: draw samples of similar length (afzal generate --max-new-tokens)"
    )


def _longer(item: Item) -> float:
    """The share of demonstration-sample pairs in which the demonstration is longer; equal lengths count half."""
    lengths = [_characters(response.turns) for response in item.responses]
    good = labels(item)
    demonstration_lengths = [n for n, label in zip(lengths, good, strict=True) if label]
    sample_lengths = [n for n, label in zip(lengths, good, strict=True) if not label]
    wins = sum((a > b) + (a == b) / 2 for a in demonstration_lengths for b in sample_lengths)
    return wins / (len(demonstration_lengths) * len(sample_lengths))


def _characters(turns: Turns) -> int:
    return len(turns if isinstance(turns, str) else as_text(turns))


def _demonstrations(item: Item) -> list[Response]:
    good = labels(item) if item.votes else [True] * len(item.responses)
    return [response for response, label in zip(item.responses, good, strict=True) if label]


def _item(item: Item, demonstrations: Sequence[Response], samples: Sequence[Response]) -> Item:
    n = len(demonstrations)
    responses = (*demonstrations, *samples)
    ratings = [Rating(k, float(k < n), kind) for kind in ("score", "label") for k in range(len(responses))]
    # max(D, S) pairs instead of all D x S, which can be very many
    indices = [(k % n, k % len(samples)) for k in range(max(n, len(samples)))]
    comparisons = [Comparison(d, n + s, "first") for d, s in indices if demonstrations[d].turns != samples[s].turns]
    return replace(item, responses=responses, votes=(*ratings, *comparisons), gold=())


def _key(prompt: Turns) -> str:
    return json.dumps(turns_to_json(prompt), sort_keys=True)
