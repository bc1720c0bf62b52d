"""Several sources as one: a YAML file that names them, their tasks, and their shares of an epoch.

    sources:
      - {data: harmless.jsonl, task: harmless}
      - {data: stories.jsonl, task: stories, weight: 2}
      - {data: code.jsonl, task: code, share: .1}
    temperature: 2
    cap: 10000

Tasks without a stated share divide the rest in proportion to weight_i min(n_i, cap)^(1/T) (T5, Raffel et al. 2020,
arXiv 1910.10683, section 3.5.2). T = 1 is proportional to size; a large T is uniform.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from afzal.errors import AfzalError
from afzal.records import Item

TASK = "task"
"""Field of ``Item.extra`` that names an item's task."""

_KEYS = {"sources", "temperature", "cap"}
_OF_A_SOURCE = {"data", "task", "weight", "share", "columns", "format"}


@dataclass(frozen=True, slots=True)
class Source:
    """One source of a mixture.

    Attributes:
        task: the task of its rows; "" keeps the rows' field ``task``.
        weight: multiplies its part of what stated shares leave.
        share: share of an epoch, in (0, 1]; None if size and weight determine it.
    """

    data: str
    task: str
    weight: float = 1.0
    share: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None


@dataclass(frozen=True, slots=True)
class Mixture:
    """The content of a mixture file. Larger temperatures give more equal shares; ``cap`` counts items."""

    sources: tuple[Source, ...]
    temperature: float = 1.0
    cap: float = math.inf

    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Share of an epoch by task, summing to 1.

        Args:
            sizes: number of items of each task; tasks without items have no share.

        Raises:
            AfzalError: stated shares leave nothing for the others, or do not sum to 1 without others.
        """
        stated: dict[str, float] = {}
        weights: dict[str, float] = {}
        for source in self.sources:
            if source.share is not None and sizes.get(source.task):
                stated[source.task] = stated.get(source.task, 0.0) + source.share
            weights.setdefault(source.task, source.weight)
        free = {
            task: weights.get(task, 1.0) * min(n, self.cap) ** (1 / self.temperature)
            for task, n in sizes.items()
            if n and task not in stated
        }
        unstated, total = 1 - sum(stated.values()), sum(free.values())
        if free and unstated <= 0:
            raise AfzalError(
                "the stated shares leave nothing for the other tasks",
                why=f"they sum to {1 - unstated:g}, and {', '.join(free)} state none",
                remedy="lower a share, or state one for every source",
            )
        scale = 1.0 if free else sum(stated.values())
        return {t: s / scale for t, s in stated.items()} | {t: unstated * w / total for t, w in free.items()}


def is_mixture(source: str | Path) -> bool:
    """Whether a source is a mixture file."""
    return Path(source).suffix in (".yaml", ".yml") and Path(source).is_file()


def mixture_of(path: str | Path) -> Mixture:
    """The mixture that a file describes.

    Raises:
        AfzalError: it is not YAML, has an unknown key, or a number is out of range.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise AfzalError(f"{path} is not a mixture of sources", why=str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("sources"), list) or not content["sources"]:
        raise AfzalError(f"{path} is not a mixture of sources", remedy="begin with sources: and a list of data:")
    _refuse_unknown(content, _KEYS, str(path))
    sources = tuple(_source(entry, Path(path)) for entry in content["sources"])
    mixture = Mixture(
        sources,
        _number(content, "temperature", 1.0, str(path)),
        _number(content, "cap", math.inf, str(path)),
    )
    with_share = Counter(s.task for s in sources if s.share is not None)
    both = [s.task for s in sources if s.share is None and s.task in with_share]
    if both:
        raise AfzalError(f"task {both[0]!r} has a share in one source but not in another", where=str(path))
    if sum(s.share or 0.0 for s in sources) > 1 + 1e-9:
        raise AfzalError("the shares sum to more than 1", where=str(path), remedy="lower one of them")
    return mixture


def tagged(items: Sequence[Item], source: Source, number: int) -> list[Item]:
    """Items with their source's task, and ids that are unique across sources."""
    return [
        replace(
            item,
            id=f"{number}/{item.id}",
            extra={**item.extra, TASK: source.task or str(item.extra.get(TASK) or Path(source.data).stem)},
        )
        for item in items
    ]


def epoch(tasks: Sequence[str], shares: Mapping[str, float], seed: int) -> list[int]:
    """The items of an epoch of ``len(tasks)`` items, as ascending indices into ``tasks``.

    A task whose share exceeds its size is repeated; from a task with a smaller share, items are drawn, always the same
    ones for a seed.
    """
    places: dict[str, list[int]] = {}
    for k, task in enumerate(tasks):
        places.setdefault(task, []).append(k)
    chosen: list[int] = []
    for task, n_items in _rounded(len(tasks), {t: shares.get(t, 0.0) for t in places}).items():
        indices = places[task]
        times, remainder = divmod(n_items, len(indices))
        extra = sorted(indices, key=lambda k: hashlib.sha256(f"{seed}:{task}:{k}".encode()).digest())[:remainder]
        chosen += indices * times + extra
    return sorted(chosen)


def _rounded(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Integers that sum to ``total``, by largest remainders."""
    exact = {task: total * share for task, share in shares.items()}
    counts = {task: int(x) for task, x in exact.items()}
    for task in sorted(exact, key=lambda t: (counts[t] - exact[t], t))[: total - sum(counts.values())]:
        counts[task] += 1
    return counts


def _source(entry: Any, path: Path) -> Source:
    where = str(path)
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
        raise AfzalError("a source has no data", where=where, remedy="- data: FILE, with task: NAME")
    _refuse_unknown(entry, _OF_A_SOURCE, where)
    share = None if entry.get("share") is None else _number(entry, "share", 1.0, where)
    if share is not None and "weight" in entry:
        raise AfzalError(f"the source {entry['data']} states share and weight", where=where, remedy="leave one out")
    if share is not None and share > 1:
        raise AfzalError(f"share is {share:g}, more than 1", where=where)
    sibling = path.parent / entry["data"]
    return Source(
        str(sibling) if sibling.exists() else entry["data"],
        str(entry.get("task") or (Path(entry["data"]).stem if entry.keys() & {"share", "weight"} else "")),
        _number(entry, "weight", 1.0, where),
        share,
        dict(entry.get("columns") or {}),
        entry.get("format"),
    )


def _number(entry: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise AfzalError(f"{key} is {value!r}, not a positive number", where=where)
    return float(value)


def _refuse_unknown(entry: Mapping[str, Any], allowed: set[str], where: str) -> None:
    if unknown := sorted(set(map(str, entry)) - allowed):
        raise AfzalError(
            f"{unknown[0]!r} is not known here", where=where, remedy=f"one of {', '.join(sorted(allowed))}"
        )
