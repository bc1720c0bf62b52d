"""Features of responses for the linear model: hashed words of their text, or numbers that the rows hold.

Shapes: K responses of an item, D features.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from afzal.data.turns import answer_text
from afzal.errors import AfzalError
from afzal.records import Item

BUCKETS = 256
FIELD = "features"
"""The field of ``Item.extra`` that holds one list of numbers per response."""

# Letters with apostrophes; where a script writes no spaces between words, a character is a word.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|(?:[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|['’ʻʼ])+"
)


def words(items: Sequence[Item], buckets: int = BUCKETS) -> list[np.ndarray]:
    """Per item ``[K, D]``: square roots of how often each word of a response occurs, words hashed into ``buckets``.

    The hash is CRC-32 of the word in lower case, the same on every machine. The root keeps long responses and frequent
    words from outweighing the rest.
    """
    places: dict[str, int] = {}
    return [np.stack([_counted(answer_text(r.turns), buckets, places) for r in item.responses]) for item in items]


def _counted(text: str, buckets: int, places: dict[str, int]) -> np.ndarray:
    counts = np.zeros(buckets)
    for word, count in Counter(_WORD.findall(text.lower())).items():
        if word not in places:
            places[word] = zlib.crc32(word.encode("utf-8", "surrogatepass")) % buckets
        counts[places[word]] += count
    return np.sqrt(counts)


def of_rows(items: Sequence[Item]) -> list[np.ndarray]:
    """Per item ``[K, D]``: the numbers of ``extra.features``, one list of D numbers for each response.

    Raises:
        AfzalError: a row has none, another shape than the others, or a value that is not a finite number.
    """
    made: list[np.ndarray] = []
    for item in items:
        values = _numbers(item)
        if made and values.shape[1] != made[0].shape[1]:
            wrong = f"the features of a response are {values.shape[1]} numbers, and {made[0].shape[1]} in other rows"
            raise AfzalError(wrong, where=place(item))
        made.append(values)
    return made


def _numbers(item: Item) -> np.ndarray:
    given, size = item.extra.get(FIELD), len(item.responses)
    remedy = f"give every row extra.{FIELD}, a list of {size} lists of numbers, one for each response"
    if given is None:
        raise AfzalError(f"the row holds no {FIELD}", where=place(item), remedy=remedy)
    if not isinstance(given, list) or len(given) != size or not all(isinstance(one, list) for one in given):
        raise AfzalError(
            f"extra.{FIELD} is not one list for each of the {size} responses", where=place(item), remedy=remedy
        )
    for k, one in enumerate(given):
        for value in one:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                wrong = f"a feature of response {k} is {value!r}, which is not a finite number"
                raise AfzalError(wrong, where=place(item), remedy=remedy)
    if len({len(one) for one in given}) != 1 or not given[0]:
        raise AfzalError("the responses have different numbers of features, or none", where=place(item), remedy=remedy)
    return np.array(given, dtype=np.float64)


def place(item: Item) -> str:
    """Where an item stands, for messages."""
    return item.where or f"row {item.id}"


def reduced(ours: np.ndarray, theirs: np.ndarray, most: int = BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """Differences ``[N, D]`` and ``[V, D]`` of hidden states in at most ``most`` directions, in which those of the pool
    vary most, on a scale on which their mean square is 1.

    Directions are of the second moment about 0, so that swapping the responses of pairs changes nothing.
    """
    if ours.shape[1] > most:
        values, vectors = np.linalg.eigh(ours.T @ ours)
        kept = vectors[:, np.argsort(-values, kind="stable")[:most]]
        ours, theirs = ours @ kept, theirs @ kept
    size = math.sqrt(float((ours**2).mean())) or 1.0
    return ours / size, theirs / size
