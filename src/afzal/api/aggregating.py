"""How far annotators agree, and one preference per pair from all of them: what ``afzal aggregate`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from afzal.api.inputs import Rows, as_path, one_of, path_of, wrong
from afzal.api.results import Result
from afzal.errors import AfzalError

By = Literal["mean", "jeffreys", "majority", "dawid_skene", "crowd_bt", "gold"]
LabelKind = Literal["soft", "weighted"]

if TYPE_CHECKING:
    from afzal.data import Dataset
    from afzal.judge import Verdicts
    from afzal.judge.labels import Labels
    from afzal.records import Item


def aggregate(
    data: Rows,
    *,
    by: By = "mean",
    labels: LabelKind = "soft",
    gold: Rows | None = None,
    gold_sizes: Sequence[int] = (),
    group_by: str | None = None,
    out: str | PathLike[str] | None = None,
    page: str | PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    skip_bad: bool = False,
    resamples: int = 1000,
    force: bool = False,
) -> Result:
    """How far annotators agree, and one preference per pair of their votes (docs/annotators.md).

    Args:
        data: rows with votes, or a file of verdicts.
        by: ``mean`` gives soft labels, ``jeffreys`` soft labels that are never certain; ``gold`` weighs annotators by
            rows of known truth, which ``gold`` names.
        labels: what the rows state: ``soft`` the probability p, ``weighted`` the likelier answer with weight |2p - 1|.
        gold_sizes: numbers of known truths: how often the answer is right with this many, measured on the other pairs.
        group_by: ``found``, a .json or .csv of annotators, or a field of the rows: groups are aggregated apart.
        out: file for the rows with one preference per pair.
        page: folder for the report.
        resamples: of whole prompts, for the intervals.
        force: write ``out`` even if it exists, or if the answer is doubtful.

    Returns:
        The report (agreement has no unit: 1 is perfect, 0 is what chance would give) with the aggregated ``rows``;
        not ``ok`` where an unsupervised answer contradicts the majority, which is then not written.

    Raises:
        AfzalError: ``out`` exists, or the rows cannot be read.

    Example:
        >>> votes = [{"prompt": "Hi", "response_a": "Hello!", "response_b": "No.", "winner": w, "judge": j}
        ...          for w, j in [("model_a", "ann"), ("model_a", "bob"), ("tie", "cid")]]
        >>> found = afzal.api.aggregate(votes, resamples=50)
        >>> len(found.rows)
        1
    """
    from afzal import data as reading
    from afzal import runs
    from afzal.judge import labels as judged
    from afzal.judge.games import CATEGORIES

    one_of(by, "by", By)
    one_of(labels, "labels", LabelKind)
    if type(resamples) is not int or resamples < 2:
        raise wrong(resamples, "resamples", "a whole number of 2 or more")
    if not all(type(size) is int and size > 0 for size in (gold_sizes if isinstance(gold_sizes, Sequence) else [""])):
        raise wrong(gold_sizes, "gold_sizes", "a list of whole numbers above 0")
    if group_by is not None:
        group_by = path_of(group_by, "group_by", "found, a file of groups, or a field of the rows")
    page = None if page is None else path_of(page, "page")
    if out is not None:
        runs.refuse_existing(Path(path_of(out, "out")), force)
    source = as_path(data, "data")
    plain = out is None and gold is None and columns is None and format is None
    asked = _Asked(by, labels, tuple(gold_sizes), group_by, Path(source).name, resamples)
    if plain and (verdicts := _verdicts(source)) is not None:
        dataset, said = None, judged.of_verdicts(verdicts)
        body, rows, refused = _on_pairs([], said, asked)
    else:
        dropping = "drop" if skip_bad else "raise"
        dataset = reading.read(source, columns=columns, format=format, on_error=dropping)
        if columns is None and format is None:
            _refuse_other_votes(source, dataset)
        truths = reading.read(as_path(gold, "gold")).items if gold is not None else []
        body, rows, refused = _on_rows(dataset, truths, asked)
        body["unread"] = [name for name in dataset.unread if name not in (*CATEGORIES, group_by)]
    shown = None
    if page is not None:
        from afzal import report

        shown = report.write_board(Path(page), body, "annotators")
    lines = _text(body)
    if out is not None and dataset is not None and (force or not refused):
        if not rows:
            raise AfzalError("there is nothing to aggregate", where=source, why="the rows name no annotators")
        written = reading.write(rows, Path(out), "afzal")
        lines.append(f"{out}: {written} rows by {by}")
    return Result(body, lines, shown, rows=rows, ok=force or not refused)


def _verdicts(source: str) -> Verdicts | None:
    """The verdicts of a file of them; None of folders, of rows with votes, and of scores, which are better averaged."""
    from afzal import judge

    if Path(source).is_dir():
        return None
    if judge.is_own(source):
        return judge.read_own(source)
    if not judge.knows(source):
        return None
    said = judge.read([source])
    return None if said.format == "Prometheus scores" else said


def _refuse_other_votes(source: str, dataset: Dataset) -> None:
    """An error where a file of verdicts, read as rows, holds other votes than those of its judges."""
    verdicts = _verdicts(source)
    judges = {verdict.judge for verdict in verdicts.verdicts} if verdicts is not None else set()
    if len(judges) > 1 and judges - {vote.annotator for item in dataset.items for vote in item.votes}:
        raise AfzalError(
            f"the verdicts of its {len(judges)} judges can be measured, but not written as rows or joined with others",
            where=source,
            why=f"read as rows ({dataset.format}), it holds other votes than theirs",
            remedy="leave --out and --gold out, or make a row of each verdict: prompt, two answers, winner, annotator",
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """How to aggregate, as :func:`aggregate` has it; ``name`` is the file's."""

    by: By
    kind: LabelKind
    gold_sizes: tuple[int, ...]
    group_by: str | None
    name: str
    resamples: int

    def refuse(self, what: str, why: str) -> None:
        """An error where an option would be ignored."""
        given = {
            f"--by {self.by}": self.by != "mean",
            f"--labels {self.kind}": self.kind != "soft",
            "--gold-sizes": bool(self.gold_sizes),
            "--group-by": self.group_by is not None,
        }
        if ignored := [name for name, is_given in given.items() if is_given]:
            remedy = "--by mean" if ignored[0].startswith("--by") else "leave the option out"
            raise AfzalError(what, where=ignored[0], why=why, remedy=remedy)


def _on_rows(dataset: Dataset, truths: Sequence[Item], asked: _Asked) -> tuple[dict[str, Any], list[Item], bool]:
    """The report, the rows with one opinion each, and whether they are refused."""
    from afzal import data
    from afzal.judge import labels, ratings, tallies
    from afzal.records import comparisons

    items = data.together(dataset.items)
    notes = [note for note in dataset.notes if note.startswith("votes.jsonl")]
    if tallies.are_tallies(items):
        asked.refuse("counts of voters are reported and not aggregated", "the rows do not say who voted for what")
        return tallies.of_voters(items, asked.name, resamples=asked.resamples), [], False
    if tallies.are_ranked(items):
        asked.refuse("ranks without annotators are reported and not aggregated", "the rows do not say who ranked")
        return tallies.of_ranks(items, asked.name), [], False
    ordered = any(True for item in items for _ in comparisons(item.votes))
    scores = None if ordered else ratings.of_items(items)
    if scores is None:
        body, rows, refused = _on_pairs(items, labels.of_items(items, truths), asked)
        body["findings"] += notes
        return body, rows, refused
    asked.refuse("scores are averaged", "they have an order and distances, which weights for classes would ignore")
    body = ratings.report(scores, asked.name, items, resamples=asked.resamples)
    body["findings"] += notes
    return body, ratings.as_items(items, scores), False


def _on_pairs(items: Sequence[Item], said: Labels, asked: _Asked) -> tuple[dict[str, Any], list[Item], bool]:
    from afzal.judge import aggregate, annotators, groups, truths

    by, kind, group_by, resamples = asked.by, asked.kind, asked.group_by, asked.resamples
    worth = truths.curve(said, asked.gold_sizes) if asked.gold_sizes else None
    agreed = annotators.agreement_of(said, resamples=resamples)
    people = annotators.people_of(said)
    found = aggregate.aggregate(said, by, anchored=bool(items))
    body = annotators.as_plain(said, agreed, people, asked.name)
    # a danger is what the page says first
    parts = (found.warnings, body["findings"]) if found.doubtful else (body["findings"], found.warnings)
    body["findings"] = [*parts[0], *parts[1]]
    body |= {"kind": "pairs", "by": by, "moved": found.moved, "decided": found.decided, "doubtful": found.doubtful}
    body |= {"dawid_skene_moved": found.dawid_skene_moved, "soft": found.soft_share(), "right": None}
    body |= {"soft_labels": found.histogram(), "tables": []}
    if (axes := groups.by_axis(said, resamples=resamples)) is not None:
        body["tables"].append(axes)
    if by != "gold" and found.checked is None:
        _add(body, truths.as_plain(found, said, by))
    if found.fit is not None:
        _add(body, aggregate.fit_as_plain(found.fit, said))
    if worth is not None:
        _add(body, truths.curve_as_plain(worth))
    if found.eta is not None:
        for line, eta in zip(body["lines"], found.eta, strict=True):
            line["eta"] = eta
    refused = by in aggregate.UNSUPERVISED and found.refused
    how = {"resamples": resamples}
    if group_by is not None and group_by != "found" and not group_by.endswith((".json", ".csv")):
        body["tables"].append(groups.by_field(items, said, group_by, **how))
        return body, aggregate.as_items(items, said, found, by, kind), refused
    if group_by is None or group_by == "found":
        apart = groups.found(said, **how)
    else:
        apart = groups.stated(said, groups.read_groups(group_by), **how)
    if apart is not None:
        body["tables"] += groups.tables(said, apart)
        body["groups"] = groups.as_plain(apart)
    if group_by is None or apart is None:
        body["findings"] += [groups.in_words(apart)] if apart is not None else []
        if group_by is not None:
            body["findings"].append("No groups of annotators were found; all are aggregated together.")
        return body, aggregate.as_items(items, said, found, by, kind), refused
    rows, answers = groups.rows_by_group(items, said, apart, by, kind)
    body["findings"].append("Each group is aggregated apart; the rows carry its name in extra.group.")
    return body, rows, by in aggregate.UNSUPERVISED and any(answer.refused for answer in answers.values())


def _add(body: dict[str, Any], part: Mapping[str, Any]) -> None:
    """A part of the report: its tables and findings after those there are."""
    for key, value in part.items():
        body[key] = [*body[key], *value] if key in ("tables", "findings") else value


def _text(body: Mapping[str, Any]) -> list[str]:
    from afzal.text import aligned, interval, number, visible

    lines = [visible(f"{body['title']}: {body['subtitle']}")]
    lines.append("  ".join(f"{name} {value}" for name, value in body["facts"]))
    lines += [visible(f"not read: {', '.join(body['unread'])}")] if body.get("unread") else []
    width = max((len(f["name"]) for f in body["figures"]), default=0)
    for f in body["figures"]:
        lines.append(f"{visible(f['name']):{width}}  {number(f['value'], 3)} {interval(f['low'], f['high'])}".rstrip())
    width = max((len(visible(line["name"])) for line in body["lines"]), default=0)
    for line in body["lines"]:
        cells = [f"{visible(line['name']):{width}}"]
        if line["value"] is not None:
            shown = interval(line["low"], line["high"])
            cells.append(f"{body['unit']} {number(line['value'], 3)} {shown}".rstrip())
        for key in (key for key in _KNOWN if line.get(key) is not None):
            ends = interval(line.get(f"{key}_low"), line.get(f"{key}_high"))
            cells.append(f"{key.replace('_', ' ')} {_cell(line[key])} {ends}".rstrip())
        lines.append("  ".join(cells))
    for table in body.get("tables", []):
        lines.append(f"{visible(table['title'])}: {visible(table['words'])}".rstrip(": "))
        lines += aligned([table["columns"], *table["rows"]])
    return [*lines, *map(visible, body["findings"])]


def _cell(value: Any) -> str:
    from afzal.text import number

    return str(value) if isinstance(value, int) else number(value, 3)


_KNOWN = (
    "labels",
    "scores",
    "mean",
    "above_others",
    "right",
    "first_slot",
    "first_slot_p",
    "consistent",
    "repeats",
    "seconds",
    "eta",
)
