"""Token counts of a data file, as a method would train on it, without a model."""

from __future__ import annotations

import numpy as np

from afzal import data, quality
from afzal.config import METHODS, make
from afzal.errors import AfzalError
from afzal.folders.load import load_processor
from afzal.model.load import load_tokenizer
from afzal.prepare.recipe import best_responses, recipe_of
from afzal.tokens import Speaker
from afzal.tokens.media import reader_of


def token_counts(
    source: str, method: str, tokenizer: str, *, columns: dict[str, str] | None = None, max_tokens: int = 1024
) -> np.ndarray:
    """int64 ``[n, 1 + K]``: token counts of each item's prompt and responses, 0 if an item has fewer than K responses.

    For a method that samples its own answers, the good answers of the file are counted.

    Args:
        tokenizer: folder or hub id.

    Raises:
        AfzalError: the file or the tokenizer cannot be read, or no row can be trained on.
    """
    dataset = data.read(source, columns=columns or None)
    items = quality.clean(dataset.items)[0]
    speaker = Speaker(load_tokenizer(tokenizer), reader=reader_of(load_processor(tokenizer)))
    encoded = speaker.encode(items, max_tokens=max_tokens)
    compares = method in METHODS and not METHODS[method].online
    select = recipe_of(make(method=method, data=source, model=tokenizer)).select if compares else best_responses
    trees = select(encoded.trees, [items[k] for k in encoded.indices])[0]
    if not trees:
        raise AfzalError(
            f"nothing in {source} can be trained on with {method}",
            why=f"{dataset.rows} rows read as {dataset.format}",
            remedy=f"see how each row is encoded with: afzal check {source} --model {tokenizer}",
        )
    widest = max(len(t.branches) for t in trees)
    counts = np.zeros((len(trees), 1 + widest), dtype=np.int64)
    for row, t in zip(counts, trees, strict=True):
        row[: 1 + len(t.branches)] = [len(t.prompt), *(len(b.ids) for b in t.branches)]
    return counts
