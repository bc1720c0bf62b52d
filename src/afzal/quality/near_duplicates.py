"""Near-duplicates and coverage; both compare items with each other and so need all texts in memory."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from afzal.quality.columns import FirstIds, Names, clusters
from afzal.quality.finding import Finding, NotRun, Severity, finding, percent
from afzal.quality.item_facts import ItemFacts, ItemTable
from afzal.quality.overlap import WORD
from afzal.quality.thresholds import (
    MANY_NEAR,
    NARROW,
    NARROW_PROMPTS,
    NEAR,
    SMALL_CHARACTERS,
    SMALL_ITEMS,
)
from afzal.stats.intervals import share

if TYPE_CHECKING:
    import numpy as np

Deep = Literal["never", "small", "always"]
"""When to compare texts with each other: never, for small files, or always."""

_GRAM = 5  # characters
_BANDS, _ROWS = 25, 5  # of the signature: misses a pair of similarity 0.8 once in 20,000
_TRIED = 20  # candidates per item compared exactly
_LIKELY = 0.64  # share of agreeing places of two sketches: four standard errors below NEAR
_SAMPLE = 500  # prompts in the sample for the coverage
_WORD_COLUMNS = 4096


class Texts:
    """The texts of the items so far; discarded if there are too many."""

    def __init__(self, deep: Deep) -> None:
        self._deep, self._characters = deep, 0
        self._items, self._prompts = Names(), Names()
        self.is_kept = deep != "never"

    def add(self, batch: Sequence[ItemFacts]) -> None:
        """Add the texts of more items."""
        for facts in batch if self.is_kept else ():
            self._characters += len(facts.prompt_text) + sum(facts.lengths)
            if self._deep == "small" and (facts.index >= SMALL_ITEMS or self._characters > SMALL_CHARACTERS):
                self._items, self._prompts, self.is_kept = Names(), Names(), False
                return
            self._items.append("\0".join((facts.prompt_text, *sorted(facts.texts))))
            self._prompts.append(facts.prompt_text)

    def findings(self, table: ItemTable) -> list[Finding]:
        """The findings; none if the texts were discarded."""
        if not self.is_kept or table.items < 2:
            return []
        texts = [self._items[k] for k in range(table.items)]
        findings = [_near_finding(texts, table), _coverage(list({self._prompts[k] for k in range(table.items)}))]
        return [finding for finding in findings if finding is not None]

    def not_run(self) -> list[NotRun]:
        """The checks skipped because of the size of the data."""
        if self.is_kept:
            return []
        why = f"more than {SMALL_ITEMS:,} items or {SMALL_CHARACTERS // 10**6} million characters"
        return [NotRun(("near_duplicates", "coverage"), why, "--deep")]


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """(place, earlier place) of every item that nearly, but not exactly, repeats an earlier one.

    Nearly means that the sets of runs of five characters, with case and white space folded, have a Jaccard similarity
    of at least ``NEAR``, both for the complete items and for their answers. Candidates come from MinHash and
    locality-sensitive hashing (Broder 1997; Leskovec et al. 2014, ch. 3), and each is compared exactly, so no pair is
    reported in error. Near-duplicates are not compared with later texts, so ten thousand similar items do not take a
    hundred million comparisons.

    Args:
        texts: the prompt and all answers of each item, separated by ``\\0``; runs do not cross it.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    first_place: dict[str, int] = {}
    duplicates: list[tuple[int, int]] = []
    sketches: dict[int, np.ndarray] = {}
    for place, text in enumerate(texts):
        folded = _folded(text)
        if folded in first_place:
            if texts[first_place[folded]] != text:
                duplicates.append((place, first_place[folded]))
            continue
        first_place[folded] = place
        hashes = grams(folded)
        if not len(hashes):
            continue
        sketch = MinHash(num_perm=_BANDS * _ROWS, seed=1, hashfunc=int)
        sketch.update_batch((hashes >> 32).tolist())
        candidates = _likely(sketch.hashvalues, sketches, [int(str(name)) for name in index.query(sketch)])
        duplicate_of = next((earlier for earlier in candidates if _is_near(folded, _folded(texts[earlier]))), None)
        if duplicate_of is None:
            index.insert(place, sketch, check_duplication=False)
            sketches[place] = sketch.hashvalues
        else:
            duplicates.append((place, duplicate_of))
    return duplicates


def grams(text: str) -> np.ndarray:
    """Sorted hashes ``[G]`` uint64 of the distinct runs of five characters without ``\\0``."""
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    n = len(codes) - _GRAM + 1
    if n < 1:
        return np.zeros(0, np.uint64)
    hashes, complete = np.zeros(n, np.uint64), np.ones(n, bool)
    for k in range(_GRAM):
        hashes = (hashes ^ codes[k : k + n]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
        complete &= codes[k : k + n] != 0
    return np.unique(hashes[complete])


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over that of the union of two sets, given as sorted arrays; 1 if both are empty."""
    import numpy as np

    both = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - both
    return both / union if union else 1.0


def vendi(prompts: Sequence[str]) -> float:
    """The number of entirely different prompts with the same diversity: exp of the entropy of the eigenvalues of K / n.

    K holds the cosines of their words, case folded and weighted by rarity (TF-IDF; Friedman and Dieng 2023, arXiv
    2210.02410). Words that occur in one prompt only, such as its number, are ignored: they add no diversity. k groups
    of equal prompts that share no word give the effective number of groups.
    """
    import numpy as np

    counts = np.zeros((len(prompts), _WORD_COLUMNS))
    for n, prompt in enumerate(prompts):
        for word in WORD.findall(prompt.casefold()):
            counts[n, zlib.crc32(word.encode("utf-8", "surrogatepass")) % _WORD_COLUMNS] += 1
    occurs = (counts > 0).sum(0)
    rows = counts * np.where(occurs > 1, np.log1p(len(prompts) / np.maximum(occurs, 1)), 0.0)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, 1.0)
    values = np.linalg.eigvalsh(cosines / len(prompts))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def _likely(sketch: np.ndarray, sketches: Mapping[int, np.ndarray], candidates: Sequence[int]) -> list[int]:
    """The candidates whose sketches agree with this one often enough, most similar first."""
    import numpy as np

    if not candidates:
        return []
    agreement = (np.stack([sketches[place] for place in candidates]) == sketch).mean(1)
    best = sorted(zip((-agreement).tolist(), candidates, strict=True))
    return [place for negative, place in best[:_TRIED] if -negative >= _LIKELY]


def _is_near(first: str, second: str) -> bool:
    """Whether two items are similar, and so are their answers alone: other answers to a long prompt are no repeats."""
    answers = (text.partition("\0")[2] for text in (first, second))
    return jaccard(grams(first), grams(second)) >= NEAR and jaccard(*map(grams, answers)) >= NEAR


def _folded(text: str) -> str:
    return "\0".join(" ".join(part.casefold().split()) for part in text.split("\0"))


def _near_finding(texts: list[str], table: ItemTable) -> Finding:
    duplicates = [
        (place, earlier) for place, earlier in near_duplicates(texts) if table.media[place] == table.media[earlier]
    ]
    ids = FirstIds()
    hit = bytearray(len(texts))
    for place, earlier in duplicates:
        hit[place] = 1
        ids.add(table.ids[place])
        ids.add(table.ids[earlier])
    rate = share(clusters(table.units, hit))
    severity: Severity = "minor" if rate.ends[0] > MANY_NEAR else "ok"
    message = f"{len(duplicates)} of {len(texts)} items nearly repeat an earlier one, {percent(rate)}"
    remedy = "keep one of each: copies count several times and may end up on both sides of a split"
    return finding("near_duplicates", severity, len(duplicates), len(texts), message, remedy, ids, rate)


def _coverage(prompts: list[str]) -> Finding | None:
    """The diversity of the distinct prompts, or of a sample, independent of their order, if there are many."""
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if len(prompts) < NARROW_PROMPTS:
        return None
    prompts = sorted(prompts, key=lambda prompt: (zlib.crc32(prompt.encode("utf-8", "surrogatepass")), prompt))
    sample = prompts[:_SAMPLE]
    score = vendi(sample)
    severity: Severity = "minor" if score < NARROW else "ok"
    message = f"{len(sample)} distinct prompts are as diverse as {score:.1f} that share no word (Vendi score)"
    remedy = "add prompts of other kinds: what a model learns here may apply only to these"
    return finding("coverage", severity, round(score), len(sample), message, remedy)
