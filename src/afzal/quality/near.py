"""Near-duplicates and coverage: they compare items with each other, so that the texts of all must be held."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from afzal.quality.columns import FirstIds, Names, clusters
from afzal.quality.finding import Finding, NotRun, Severity, finding, percent
from afzal.quality.overlap import WORD
from afzal.quality.thresholds import (
    MANY_NEAR,
    NARROW,
    NARROW_PROMPTS,
    NEAR,
    SMALL_CHARACTERS,
    SMALL_ITEMS,
)
from afzal.quality.view import Told, View
from afzal.stats.intervals import share

if TYPE_CHECKING:
    import numpy as np

Deep = Literal["never", "small", "always"]
"""When texts are compared with each other: never, in small files, or always."""

_GRAM = 5  # characters
_BANDS, _ROWS = 25, 5  # of the signature: finds a pair of similarity 0.8 but once in 20,000
_TRIED = 20  # candidates per item that are compared exactly
_LIKELY = 0.64  # share of agreeing places of two sketches: four standard errors below NEAR
_SAMPLE = 500  # prompts of which the coverage is taken
_WORD_COLUMNS = 4096


class Texts:
    """The texts of the items so far; dropped when they become too many."""

    def __init__(self, deep: Deep) -> None:
        self._deep, self._characters = deep, 0
        self._items, self._prompts = Names(), Names()
        self.held = deep != "never"

    def add(self, batch: Sequence[Told]) -> None:
        """Keep the texts of some more items."""
        for told in batch if self.held else ():
            self._characters += len(told.asked) + sum(told.lengths)
            if self._deep == "small" and (told.at >= SMALL_ITEMS or self._characters > SMALL_CHARACTERS):
                self._items, self._prompts, self.held = Names(), Names(), False
                return
            self._items.append("\0".join((told.asked, *sorted(told.texts))))
            self._prompts.append(told.asked)

    def findings(self, view: View) -> list[Finding]:
        """What they come to; none where they are not held."""
        if not self.held or view.items < 2:
            return []
        texts = [self._items[at] for at in range(view.items)]
        made = [_near_finding(texts, view), _coverage(list({self._prompts[at] for at in range(view.items)}))]
        return [one for one in made if one is not None]

    def not_run(self) -> list[NotRun]:
        """What was left out because of the size of the data."""
        if self.held:
            return []
        why = f"more than {SMALL_ITEMS:,} items or {SMALL_CHARACTERS // 10**6} million characters"
        return [NotRun(("near_duplicates", "coverage"), why, "--deep")]


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """(place, earlier place) of every item that is nearly an earlier one, and not the same.

    Nearly: the sets of five neighbouring characters, case and white space folded, have a Jaccard similarity of at least
    ``NEAR``, both of the whole items and of their answers. Candidates come from MinHash and locality-sensitive hashing
    (Broder 1997; Leskovec et al. 2014, ch. 3), and each is compared exactly, so that no pair is reported in error.
    Near-duplicates are not compared with later texts, so that ten thousand alike take no hundred million comparisons.

    Args:
        texts: the prompt and every answer of each item, with ``\\0`` between them; no five characters lie across it.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    seen: dict[str, int] = {}
    found: list[tuple[int, int]] = []
    sketches: dict[int, np.ndarray] = {}
    for at, text in enumerate(texts):
        folded = _folded(text)
        if folded in seen:
            if texts[seen[folded]] != text:
                found.append((at, seen[folded]))
            continue
        seen[folded] = at
        own = grams(folded)
        if not len(own):
            continue
        sketch = MinHash(num_perm=_BANDS * _ROWS, seed=1, hashfunc=int)
        sketch.update_batch((own >> 32).tolist())
        candidates = _likely(sketch.hashvalues, sketches, [int(str(name)) for name in index.query(sketch)])
        near = next((other for other in candidates if _is_near(folded, _folded(texts[other]))), None)
        if near is None:
            index.insert(at, sketch, check_duplication=False)
            sketches[at] = sketch.hashvalues
        else:
            found.append((at, near))
    return found


def grams(text: str) -> np.ndarray:
    """Hashes ``[G]`` uint64, sorted, of the different runs of five characters that hold no ``\\0``."""
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    n = len(codes) - _GRAM + 1
    if n < 1:
        return np.zeros(0, np.uint64)
    made, whole = np.zeros(n, np.uint64), np.ones(n, bool)
    for k in range(_GRAM):
        made = (made ^ codes[k : k + n]) * np.uint64(0x9E3779B97F4A7C15)
        made ^= made >> np.uint64(29)
        whole &= codes[k : k + n] != 0
    return np.unique(made[whole])


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over that of the union of two sets, as sorted arrays; 1 where both are empty."""
    import numpy as np

    both = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - both
    return both / union if union else 1.0


def vendi(prompts: Sequence[str]) -> float:
    """As how many wholly different prompts these are as diverse: exp of the entropy of the eigenvalues of K / n.

    K holds the cosines of their words, case folded and weighted by rarity (TF-IDF; Friedman and Dieng 2023, arXiv
    2210.02410). Words of one prompt only, such as its number, are left out: they make nothing diverse. k groups of
    equal prompts that share no word give the effective number of the groups.
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


def _likely(sketch: np.ndarray, others: Mapping[int, np.ndarray], candidates: Sequence[int]) -> list[int]:
    """The candidates whose sketches agree with this one often enough, the most alike first."""
    import numpy as np

    if not candidates:
        return []
    agreement = (np.stack([others[at] for at in candidates]) == sketch).mean(1)
    best = sorted(zip((-agreement).tolist(), candidates, strict=True))
    return [at for less, at in best[:_TRIED] if -less >= _LIKELY]


def _is_near(one: str, other: str) -> bool:
    """Whether two items are alike, and their answers by themselves: other answers to a long prompt are not repeats."""
    answers = (text.partition("\0")[2] for text in (one, other))
    return jaccard(grams(one), grams(other)) >= NEAR and jaccard(*map(grams, answers)) >= NEAR


def _folded(text: str) -> str:
    return "\0".join(" ".join(part.casefold().split()) for part in text.split("\0"))


def _near_finding(texts: list[str], view: View) -> Finding:
    found = [(at, near) for at, near in near_duplicates(texts) if view.media[at] == view.media[near]]
    ids = FirstIds()
    hit = bytearray(len(texts))
    for at, other in found:
        hit[at] = 1
        ids.add(view.ids[at])
        ids.add(view.ids[other])
    known = share(clusters(view.units, hit))
    severity: Severity = "minor" if known.ends[0] > MANY_NEAR else "ok"
    message = f"{len(found)} of {len(texts)} items nearly repeat an earlier one, {percent(known)}"
    remedy = "keep one of each: copies count several times, and may end up on both sides of a split"
    return finding("near_duplicates", severity, len(found), len(texts), message, remedy, ids, known)


def _coverage(prompts: list[str]) -> Finding | None:
    """How diverse the different prompts are; a sample that does not depend on their order where there are many."""
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if len(prompts) < NARROW_PROMPTS:
        return None
    prompts = sorted(prompts, key=lambda prompt: (zlib.crc32(prompt.encode("utf-8", "surrogatepass")), prompt))
    sample = prompts[:_SAMPLE]
    score = vendi(sample)
    severity: Severity = "minor" if score < NARROW else "ok"
    message = f"{len(sample)} different prompts are as diverse as {score:.1f} that share no word (Vendi score)"
    remedy = "add prompts of other kinds: what a model learns here may hold for these only"
    return finding("coverage", severity, round(score), len(sample), message, remedy)
