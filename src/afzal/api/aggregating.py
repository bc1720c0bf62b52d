"""Annotator agreement, and one preference per pair from all votes: the function behind ``afzal aggregate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from afzal.api.inputs import Rows, as_path, one_of, path_of, wrong
from afzal.api.results import ON_REQUEST, Result
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
    """Measure how far annotators agree, and combine their votes into one preference per pair (docs/annotators.md).

    Args:
        data: rows with votes, or a file of verdicts.
        by: ``mean`` gives soft labels, ``jeffreys`` soft labels that are never certain; ``majority`` the most frequent
            label, an even split being a tie; ``dawid_skene`` weights labels by each annotator's estimated errors, and
            ``crowd_bt`` by an estimated reliability; ``gold`` weights annotators by their accuracy on rows of known
            truth, which ``gold`` names.
        labels: labels of the rows: ``soft``, the probability p; ``weighted``, the likelier answer with weight |2p - 1|.
        gold: rows of known truth: the same prompts and responses, with the better one marked.
        gold_sizes: measure how often the result is right with these numbers of known truths, on the other pairs.
        group_by: aggregate groups separately: ``found`` (from the votes), a .json or .csv of annotators, or a field.
        out: file for the rows with one preference per pair.
        page: folder for the report.
        columns: names of the fields, such as ``{"chosen": "good"}``.
        format: the name of the rows' format; default: detected.
        skip_bad: skip and count damaged rows instead of stopping.
        resamples: number of resamples of whole prompts, for the intervals.
        force: write ``out`` even if it exists, or if the result is doubtful.

    Returns:
        The report (agreement has no unit: 1 is perfect, 0 is chance level) with the aggregated ``rows``; not ``ok`` if
        an unsupervised result contradicts the majority, which is then not written.

    Raises:
        AfzalError: ``out`` exists, or the rows cannot be read.

    Example:
        >>> votes = [{"prompt": "Hi", "response_a": "Hello!", "response_b": "No.", "winner": w, "judge": j}
        ...          for w, j in [("model_a", "ann"), ("model_a", "bob"), ("tie", "cid")]]
        >>> result = afzal.api.aggregate(votes, resamples=50)
        >>> len(result.rows)
        1
    """
    from afzal import data as reading
    from afzal import judge, report, runs
    from afzal.judge import labels as judged
    from afzal.judge.games import CATEGORIES
    from afzal.judge.outputs import ROWS

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
    if not plain and judge.is_afzal_file(source):
        raise AfzalError(
            "the verdicts of afzal judge can be measured, but not written as rows or joined with others",
            where=source,
            remedy=f"afzal aggregate {Path(source).with_name(ROWS)}: the rows with the same verdicts as votes",
        )
    options = _Options(by, labels, tuple(gold_sizes), group_by, Path(source).name, resamples)
    if plain and (verdicts := _verdicts(source)) is not None:
        dataset = None
        body, rows, refused = _on_pairs([], judged.of_verdicts(verdicts), options)
    else:
        on_error = "drop" if skip_bad else "raise"
        dataset = reading.read(source, columns=columns, format=format, on_error=on_error)
        if columns is None and format is None:
            _refuse_other_votes(source, dataset)
        truths, notes = _truths(as_path(gold, "gold")) if gold is not None else ([], [])
        body, rows, refused = _on_rows(dataset, truths, options)
        body["findings"] += notes
        body["unread"] = [name for name in dataset.unread if name not in (*CATEGORIES, group_by)]
    written_page = None if page is None else report.write_board(Path(page), body, "annotators")
    lines = _text(report.shortened(body, ON_REQUEST))
    if out is not None and dataset is not None and (force or not refused):
        if not rows:
            raise AfzalError("there is nothing to aggregate", where=source, why="the rows name no annotators")
        count = reading.write(rows, Path(out), "afzal")
        lines.append(f"{out}: {count} rows by {by}")
    return Result(body, lines, written_page, rows=rows, ok=force or not refused)


def _truths(source: str) -> tuple[list[Item], list[str]]:
    """The rows of known truth, and a finding if verdicts of judges among their votes were left out.

    Raises:
        AfzalError: it holds nothing but such verdicts.
    """
    from afzal import data

    trusted = data.without_verdicts(data.read(source).items)
    if not trusted.verdicts:
        return trusted.items, []
    if not any(item.gold or item.votes for item in trusted.items):
        raise AfzalError(
            f"{Path(source).name} holds no known truth",
            where="gold",
            why=f"it holds {trusted.in_words}",
            remedy="name a file in which people or the field gold say which answer is better",
        )
    return trusted.items, [f"{trusted.in_words} in {Path(source).name} are left out: they are not known truth."]


def _verdicts(source: str) -> Verdicts | None:
    """The verdicts in a file; None for folders, for rows with votes, and for scores, which are better averaged."""
    from afzal import judge

    if Path(source).is_dir():
        return None
    if judge.is_afzal_file(source):
        return judge.read_afzal_file(source)
    if not judge.has_known_format(source):
        return None
    verdicts = judge.read([source])
    return None if verdicts.format == "Prometheus scores" else verdicts


def _refuse_other_votes(source: str, dataset: Dataset) -> None:
    """Raise an error if a file of verdicts, read as rows, has other votes than its judges' verdicts."""
    verdicts = _verdicts(source)
    judges = {verdict.judge for verdict in verdicts.verdicts} if verdicts is not None else set()
    if len(judges) > 1 and judges - {vote.annotator for item in dataset.items for vote in item.votes}:
        raise AfzalError(
            f"the verdicts of its {len(judges)} judges can be measured, but not written as rows or joined with others",
            where=source,
            why=f"read as rows ({dataset.format}), it holds other votes than theirs",
            remedy="omit --out and --gold, or make a row of each verdict: prompt, two answers, winner, annotator",
        )


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of :func:`aggregate`; ``name`` is the file name."""

    by: By
    kind: LabelKind
    gold_sizes: tuple[int, ...]
    group_by: str | None
    name: str
    resamples: int

    def refuse(self, what: str, why: str) -> None:
        """Raise an error if an option would be ignored."""
        options = {
            f"--by {self.by}": self.by != "mean",
            f"--labels {self.kind}": self.kind != "soft",
            "--gold-sizes": bool(self.gold_sizes),
            "--group-by": self.group_by is not None,
        }
        if ignored := [name for name, is_given in options.items() if is_given]:
            remedy = "--by mean" if ignored[0].startswith("--by") else "omit the option"
            raise AfzalError(what, where=ignored[0], why=why, remedy=remedy)


def _on_rows(dataset: Dataset, truths: Sequence[Item], options: _Options) -> tuple[dict[str, Any], list[Item], bool]:
    """The report, the rows with one opinion each, and whether they are refused."""
    from afzal import data
    from afzal.judge import labels, ratings, tallies
    from afzal.records import comparisons

    items = data.join_votes(dataset.items)
    notes = [note for note in dataset.notes if note.startswith("votes.jsonl")]
    if dataset.drop_counts:
        dropped = ", ".join(f"{reason} {n:,}" for reason, n in dataset.drop_counts.items())
        notes.append(f"Not counted, since they are not votes or cannot be used: {dropped}.")
    by_people = data.without_verdicts(dataset.items)
    if by_people.verdicts:
        n_votes = sum(len(item.votes) for item in dataset.items)
        notes.append(f"{by_people.in_words} are among the {n_votes:,} votes; they count like people's.")
    if tallies.are_tallies(items):
        options.refuse("counts of voters are reported and not aggregated", "the rows do not say who voted for what")
        return tallies.of_voters(items, options.name, resamples=options.resamples), [], False
    if tallies.are_ranked(items):
        options.refuse("ranks without annotators are reported and not aggregated", "the rows do not say who ranked")
        return tallies.of_ranks(items, options.name), [], False
    ordered = any(True for item in items for _ in comparisons(item.votes))
    scores = None if ordered else ratings.of_items(items)
    if scores is None:
        body, rows, refused = _on_pairs(items, labels.of_items(items, truths), options)
        body["findings"] += notes
        return body, rows, refused
    options.refuse("scores are averaged", "they have an order and distances, which weights for classes would ignore")
    body = ratings.report(scores, options.name, items, resamples=options.resamples)
    body["findings"] += notes
    return body, ratings.as_items(items, scores), False


def _on_pairs(items: Sequence[Item], labelled: Labels, options: _Options) -> tuple[dict[str, Any], list[Item], bool]:
    from afzal.judge import aggregate, annotators, gold_accuracy, groups

    by, kind, group_by, resamples = options.by, options.kind, options.group_by, options.resamples
    worth = gold_accuracy.curve(labelled, options.gold_sizes) if options.gold_sizes else None
    agreed = annotators.overall_agreement(labelled, resamples=resamples)
    people = annotators.annotator_reports(labelled)
    result = aggregate.aggregate(labelled, by, anchored=bool(items))
    body = annotators.as_plain(labelled, agreed, people, options.name)
    # warnings of a doubtful result come first on the page
    parts = (result.warnings, body["findings"]) if result.doubtful else (body["findings"], result.warnings)
    body["findings"] = [*parts[0], *parts[1]]
    body |= {
        "kind": "pairs",
        "by": by,
        "moved": result.overturned,
        "decided": result.decided,
        "doubtful": result.doubtful,
    }
    body |= {"dawid_skene_moved": result.dawid_skene_overturned, "soft": result.soft_share(), "right": None}
    body |= {"soft_labels": result.histogram(), "tables": []}
    if (axes := groups.by_axis(labelled, resamples=resamples)) is not None:
        body["tables"].append(axes)
    if by != "gold" and result.held_out is None:
        _add(body, gold_accuracy.as_plain(result, labelled, by))
    if result.fit is not None:
        _add(body, aggregate.fit_as_plain(result.fit, labelled))
    if worth is not None:
        _add(body, gold_accuracy.curve_as_plain(worth))
    if result.eta is not None:
        for line, eta in zip(body["lines"], result.eta, strict=True):
            line["eta"] = eta
    refused = by in aggregate.UNSUPERVISED and result.refused
    options_for_tables = {"resamples": resamples}
    if group_by is not None and group_by != "found" and not group_by.endswith((".json", ".csv")):
        body["tables"].append(groups.by_field(items, labelled, group_by, **options_for_tables))
        return body, aggregate.as_items(items, labelled, result, by, kind), refused
    if group_by is None or group_by == "found":
        annotator_groups = groups.found(labelled, **options_for_tables)
    else:
        annotator_groups = groups.given_groups(labelled, groups.read_groups(group_by), **options_for_tables)
    if annotator_groups is not None:
        body["tables"] += groups.tables(labelled, annotator_groups)
        body["groups"] = groups.as_plain(annotator_groups)
    if group_by is None or annotator_groups is None:
        body["findings"] += [groups.in_words(annotator_groups)] if annotator_groups is not None else []
        if group_by is not None:
            body["findings"].append("No groups of annotators were found; all are aggregated together.")
        return body, aggregate.as_items(items, labelled, result, by, kind), refused
    rows, answers = groups.rows_by_group(items, labelled, annotator_groups, by, kind)
    body["findings"].append("Each group is aggregated apart; the rows carry its name in extra.group.")
    return body, rows, by in aggregate.UNSUPERVISED and any(answer.refused for answer in answers.values())


def _add(body: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a part to the report: append its tables and findings, and set its other keys."""
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
            ends = interval(line["low"], line["high"])
            cells.append(f"{body['unit']} {number(line['value'], 3)} {ends}".rstrip())
        for key in (key for key in _KNOWN if line.get(key) is not None):
            bounds = interval(line.get(f"{key}_low"), line.get(f"{key}_high"))
            cells.append(f"{key.replace('_', ' ')} {_cell(line[key])} {bounds}".rstrip())
        lines.append("  ".join(cells))
    lines += [body["lines_words"]] if "lines_words" in body else []
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
