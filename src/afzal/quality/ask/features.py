"""Features of responses for the linear model: hashed words of their text, or numbers from the rows.

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

# Letters with apostrophes; in scripts without spaces between words, each character is a word.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|(?:[^\W\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|['’ʻʼ])+"
)


def words(items: Sequence[Item], buckets: int = BUCKETS) -> list[np.ndarray]:
    """Per item ``[K, D]``: square roots of the word counts of each response, with words hashed into ``buckets``.

    The hash is CRC-32 of the lower-case word, the same on every machine. The square root keeps long responses and
    frequent words from dominating.
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


def row_features(items: Sequence[Item]) -> list[np.ndarray]:
    """Per item ``[K, D]``: the numbers of ``extra.features``, one list of D numbers for each response.

    Raises:
        AfzalError: a row has none, a shape that differs from other rows, or a value that is not a finite number.
    """
    features: list[np.ndarray] = []
    for item in items:
        values = _numbers(item)
        if features and values.shape[1] != features[0].shape[1]:
            wrong = f"a response has {values.shape[1]} features, but {features[0].shape[1]} in other rows"
            raise AfzalError(wrong, where=place(item))
        features.append(values)
    return features


def _numbers(item: Item) -> np.ndarray:
    features, size = item.extra.get(FIELD), len(item.responses)
    remedy = f"give every row extra.{FIELD}, a list of {size} lists of numbers, one for each response"
    if features is None:
        raise AfzalError(f"the row has no {FIELD}", where=place(item), remedy=remedy)
    if (
        not isinstance(features, list)
        or len(features) != size
        or not all(isinstance(values, list) for values in features)
    ):
        raise AfzalError(
            f"extra.{FIELD} is not one list for each of the {size} responses", where=place(item), remedy=remedy
        )
    for k, values in enumerate(features):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                problem = f"a feature of response {k} is {value!r}, which is not a finite number"
                raise AfzalError(problem, where=place(item), remedy=remedy)
    if len({len(values) for values in features}) != 1 or not features[0]:
        raise AfzalError("the responses have different numbers of features, or none", where=place(item), remedy=remedy)
    return np.array(features, dtype=np.float64)


def place(item: Item) -> str:
    """The position of an item, for messages."""
    return item.where or f"row {item.id}"


def reduced(pool: np.ndarray, voted: np.ndarray, most: int = BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """Differences ``[N, D]`` and ``[V, D]`` of hidden states, projected onto the at most ``most`` directions in which
    the pool varies most, and scaled to a mean square of 1 in the pool.

    Directions are those of the second moment about 0, so swapping the responses of pairs changes nothing.
    """
    if pool.shape[1] > most:
        values, vectors = np.linalg.eigh(pool.T @ pool)
        directions = vectors[:, np.argsort(-values, kind="stable")[:most]]
        pool, voted = pool @ directions, voted @ directions
    size = math.sqrt(float((pool**2).mean())) or 1.0
    return pool / size, voted / size
