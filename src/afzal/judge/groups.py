"""Annotators in groups: do people agree within groups but not between them, so that disagreement is not noise?"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from afzal import text
from afzal.data.magic import HEAD, refuse_foreign_text
from afzal.errors import AfzalError
from afzal.judge.aggregate import Aggregation, By, LabelKind, aggregate, as_items
from afzal.judge.figures import figure
from afzal.judge.labels import CLASSES, SECOND, Labels
from afzal.records import Item
from afzal.stats import agreement, resampling
from afzal.stats.intervals import Interval

SHARED_AT_LEAST = 20  # pairs that two annotators must both have decided for their agreement to be known
GAP_AT_LEAST = 0.1  # least difference between agreement within and between groups for groups to be reported


@dataclass(frozen=True, slots=True)
class Groups:
    """Annotators in groups.

    Attributes:
        of: the group of each annotator, by name.
        within, between: the probability that two decided labels of one pair, by people of the same group or of
            different groups, name the same winner; on pairs not used to find the groups.
        gap: within minus between.
    """

    of: Mapping[str, str]
    within: Interval
    between: Interval
    gap: Interval

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the groups, in order."""
        return tuple(dict.fromkeys(self.of.values()))


def given_groups(labels: Labels, group_by_name: Mapping[str, str], *, resamples: int, seed: int = 0) -> Groups:
    """Groups known beforehand, measured on all pairs.

    Raises:
        AfzalError: an annotator has no group, or there is only one group.
    """
    missing = [name for name in labels.annotators if name not in group_by_name]
    if missing:
        raise AfzalError(f"{missing[0]!r} has no group", where="--group-by", why=f"{len(missing)} annotators have none")
    group_of = {name: str(group_by_name[name]) for name in labels.annotators}
    if len(set(group_of.values())) < 2:
        raise AfzalError("all annotators are in one group", where="--group-by", remedy="leave the option out")
    all_rows = np.ones(len(labels.pairs), bool)
    return _measured(labels, group_of, all_rows, resamples, seed)


def read_groups(path: str) -> dict[str, str]:
    """The group of each annotator, from a JSON object or a CSV file with the columns annotator and group.

    Raises:
        AfzalError: it is neither, or it puts an annotator in two groups.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
        refuse_foreign_text(content[:HEAD], path)
        plain = content.decode("utf-8-sig")
        if file.suffix == ".csv":
            rows = [(row["annotator"], row["group"]) for row in csv.DictReader(io.StringIO(plain, newline=""))]
        else:
            rows = [(str(name), str(group)) for name, group in json.loads(plain).items()]
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        what = "holds no groups of annotators"
        remedy = 'write {"ann": "group 1", ...}, or a CSV file with the columns annotator and group'
        raise AfzalError(what, where=path, why=str(error), remedy=remedy) from None
    groups: dict[str, str] = {}
    for name, group in rows:
        if groups.setdefault(name, group) != group:
            raise AfzalError(f"{name!r} is in the groups {groups[name]!r} and {group!r}", where=path, remedy="keep one")
    return groups


def found(labels: Labels, *, resamples: int, seed: int = 0) -> Groups | None:
    """Two groups of annotators who agree within each group but not between the two; None if there are no such groups.

    They are found on one half of the prompts, by average linkage on pairwise agreement, and measured on the other half.
    Each needs two people, since one person alone who differs may have reversed labels.
    """
    half = np.array([_coin(prompt) for prompt in labels.prompts])
    group_of = _two_groups(labels, half)
    if group_of is None:
        return None
    groups = _measured(labels, group_of, ~half, resamples, seed)
    low = groups.gap.low
    return groups if low is not None and low > 0 and groups.gap.value >= GAP_AT_LEAST else None


def _coin(prompt: str) -> bool:
    """A coin toss that depends only on the prompt."""
    return bool(hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1)


def _decided(labels: Labels, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[R, R]`` how many pairs each two annotators both decided, and on how many they name the same winner."""
    table = labels.table[rows][:, columns]
    first, second = ((table == c).astype(np.float64) for c in (0, SECOND))
    decided = first + second
    return decided.T @ decided, first.T @ first + second.T @ second


def _two_groups(labels: Labels, rows: np.ndarray) -> dict[str, str] | None:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    # an annotator who decided too few pairs is in no group
    table = labels.table[rows]
    busy = np.flatnonzero(((table >= 0) & (table <= SECOND)).sum(0) >= SHARED_AT_LEAST / 2)
    shared, equal = _decided(labels, rows, busy)
    known = [k for k in range(len(shared)) if (shared[k] >= SHARED_AT_LEAST / 2).sum() > 1]
    if len(known) < 4:
        return None
    shared, equal = shared[np.ix_(known, known)], equal[np.ix_(known, known)]
    distance = 1 - np.where(shared > 0, equal / np.maximum(shared, 1), equal.sum() / shared.sum())
    np.fill_diagonal(distance, 0.0)
    cluster = fcluster(linkage(squareform(distance, checks=False), "average"), 2, "maxclust")
    sizes = np.bincount(cluster)[1:]
    if len(sizes) < 2 or sizes.min() < 2:
        return None
    names = [labels.annotators[k] for k in busy[known]]
    order = dict.fromkeys(cluster.tolist())
    number = {group: f"group {k}" for k, group in enumerate(order, 1)}
    return {name: number[group] for name, group in zip(names, cluster.tolist(), strict=True)}


def _measured(labels: Labels, group_of: Mapping[str, str], rows: np.ndarray, resamples: int, seed: int) -> Groups:
    """Agreement within and between groups, from counts per pair: n equal labels make n (n - 1) equal ordered pairs."""
    table = labels.table[rows]
    number = {name: k for k, name in enumerate(labels.annotators)}
    columns = [[number[n] for n, g in group_of.items() if g == group] for group in dict.fromkeys(group_of.values())]
    first = np.stack([(table[:, members] == 0).sum(1) for members in columns], 1).astype(np.float64)
    second = np.stack([(table[:, members] == SECOND).sum(1) for members in columns], 1).astype(np.float64)
    n = first + second
    within_groups = (n * (n - 1)).sum(1), (first * (first - 1) + second * (second - 1)).sum(1)
    all_pairs = n.sum(1) * (n.sum(1) - 1)
    all_same = first.sum(1) * (first.sum(1) - 1) + second.sum(1) * (second.sum(1) - 1)
    quantities = np.stack([*within_groups, all_pairs - within_groups[0], all_same - within_groups[1]], 1)
    prompts = [p for p, selected in zip(labels.prompts, rows, strict=True) if selected]
    known = resampling.sums(quantities, prompts, resamples=resamples, seed=seed)
    return Groups(
        dict(group_of),
        within=known.interval(lambda s: s[..., 1] / s[..., 0]),
        between=known.interval(lambda s: s[..., 3] / s[..., 2]),
        gap=known.interval(lambda s: s[..., 1] / s[..., 0] - s[..., 3] / s[..., 2]),
    )


def only(labels: Labels, groups: Groups, group: str) -> Labels:
    """The labels of one group; the pairs and their numbers stay the same."""
    members = {k for k, name in enumerate(labels.annotators) if groups.of.get(name) == group}
    number = {old: new for new, old in enumerate(sorted(members))}
    selected = tuple(replace(s, annotator=number[s.annotator]) for s in labels.entries if s.annotator in members)
    return replace(labels, annotators=tuple(labels.annotators[k] for k in sorted(members)), entries=selected)


def rows_by_group(
    items: Sequence[Item], labels: Labels, groups: Groups, by: By, kind: LabelKind = "soft"
) -> tuple[list[Item], dict[str, Aggregation]]:
    """The rows once per group, with its preferences and its name in ``extra.group``; and the aggregated answers."""
    rows, answers = [], {}
    for group in groups.names:
        group_labels = only(labels, groups, group)
        answers[group] = aggregate(group_labels, by)
        for item in as_items(items, group_labels, answers[group], by, kind):
            if item.votes:
                rows.append(replace(item, id=f"{item.id}/{group}", extra={**item.extra, "group": group}))
    return rows, answers


def tables(labels: Labels, groups: Groups) -> list[dict[str, Any]]:
    """The groups as tables for the page; accuracy is shown if truths are known."""
    rows = []
    for group in groups.names:
        group_labels = only(labels, groups, group)
        known = (group_labels.table >= 0) & (group_labels.gold >= 0)[:, None]
        right = f"{(group_labels.table == group_labels.gold[:, None])[known].mean():.1%}" if known.any() else "unknown"
        rows.append([group, str(len(group_labels.annotators)), right])
    words = (
        f"Two people name the same winner on {groups.within.value:.1%} of decided pairs within a group and on "
        f"{groups.between.value:.1%} between groups."
    )
    members = [[name, group] for group in groups.names for name in _members(groups, group)]
    return [
        {"title": "Groups", "words": words, "columns": ["group", "annotators", "right"], "rows": rows},
        {"title": "Members", "words": "", "columns": ["annotator", "group"], "rows": members},
    ]


def as_plain(groups: Groups) -> dict[str, Any]:
    """The groups as plain values."""
    figures = {name: figure(getattr(groups, name)) for name in ("within", "between", "gap")}
    return {"of": dict(groups.of), **figures}


def by_field(items: Sequence[Item], labels: Labels, field: str, *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Agreement among rows whose ``extra`` holds the same value of a field, as a table.

    Raises:
        AfzalError: no row has the field.
    """
    values = [items[number].extra.get(field) if items else None for number, *_ in labels.pairs]
    if all(value is None for value in values):
        what = f"{field!r} is neither a file of groups nor a field of the rows"
        raise AfzalError(what, where="--group-by", remedy="name a field, a .json or .csv file, or: found")
    words = "Agreement among rows with the same value; a group that agrees less may be a matter of taste."
    return _by_value(labels, field, values, words, resamples=resamples, seed=seed)


def by_axis(labels: Labels, *, resamples: int, seed: int = 0) -> dict[str, Any] | None:
    """Agreement on each axis, as a table; None for fewer than two axes."""
    axes = [axis or "" for *_, axis in labels.pairs]
    words = "Each axis asks a different question; the figures above pool them."
    return _by_value(labels, "axis", axes, words, resamples=resamples, seed=seed) if len(set(axes)) > 1 else None


def _by_value(
    labels: Labels, name: str, values: Sequence[object], words: str, *, resamples: int, seed: int
) -> dict[str, Any]:
    counted = agreement.counts(labels.table, len(CLASSES))
    rows = []
    for value in sorted({str(v) for v in values}):
        selected = np.array([str(v) == value for v in values])
        several = selected & (counted.sum(1) >= 2)
        cells = [value, str(int(selected.sum())), str(int(several.sum()))]
        if several.any():
            prompts = [p for p, is_used in zip(labels.prompts, several, strict=True) if is_used]
            group_counts = counted[several]
            known = resampling.sums(agreement.raw_sums(group_counts), prompts, resamples=resamples, seed=seed)
            raw = agreement.with_width(known.interval(agreement.raw_of), group_counts, prompts)
            cells += [_shown(raw), text.number(agreement.krippendorff(group_counts[:, group_counts.sum(0) > 0]), 3)]
        rows.append([*cells, "", ""][:5])
    columns = [name, "pairs", "with two labels or more", "raw agreement", "Krippendorff's alpha"]
    return {"title": f"By {name}", "words": words, "columns": columns, "rows": rows}


def _shown(known: Interval) -> str:
    ends = "" if known.low is None or known.high is None else f" [{known.low:.3f}, {known.high:.3f}]"
    return f"{known.value:.3f}{ends}"


def in_words(groups: Groups) -> str:
    """A description of the groups, for the report."""
    parts = [f"{group} ({_shortened(_members(groups, group))})" for group in groups.names]
    return (
        f"The disagreement has a pattern: within {' and '.join(parts)} two people name the same winner on "
        f"{groups.within.value:.0%} of decided pairs, between the groups on {groups.between.value:.0%}. That is not "
        "noise: either the groups differ in taste, or one of them errs. --group-by found aggregates them separately."
    )


def _members(groups: Groups, group: str) -> list[str]:
    return [name for name, its_group in groups.of.items() if its_group == group]


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 5 else [*names[:3], f"and {len(names) - 3} more"])
