"""Audit of a data file, its contents and faults: the function behind ``afzal check``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from afzal.api.gc_pause import collector_paused
from afzal.api.inputs import Model, Rows, as_path, wrong
from afzal.api.results import Result
from afzal.errors import AfzalError
from afzal.terminal import one_line

if TYPE_CHECKING:
    from afzal.config import ScoreConfig
    from afzal.data import Dataset, MediaRules
    from afzal.quality import Audit, Finding, NotRun


def check(
    data: Rows,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    skip_bad: bool = False,
    max_unpacked: float = 4,
    media_folder: str | PathLike[str] | None = None,
    deep: bool = False,
    against: Rows | None = None,
    reward: Model | None = None,
    policy: Model | None = None,
    reference: Model | None = None,
    max_tokens: int = 1024,
) -> Result:
    """Show what rows hold and what is wrong with them; needs no model (docs/audit.md).

    Args:
        data: the rows to check.
        columns: names of the fields, such as ``{"chosen": "good"}``.
        format: the name of the rows' format; default: detected.
        skip_bad: skip and count damaged rows instead of stopping.
        max_unpacked: largest unpacked size of a gzip file in GiB; 0 means no limit.
        media_folder: base folder for image and sound paths; default: the folder of the file.
        deep: compare all texts with each other even in a large file (near-duplicates).
        against: a test set: which of its prompts are in ``data``?
        reward: a reward model: which pairs does it contradict? Or ``policy`` with its ``reference``.
        max_tokens: limit on prompt and response together, for the models.

    Returns:
        Counts, findings and the format that was read; not ``ok`` with a major finding.

    Raises:
        AfzalError: the rows cannot be read.

    Example:
        >>> result = afzal.api.check([{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}])
        >>> result["format"], result["pairs"]
        ('standard', 1)
    """
    scorers = {key: None if m is None else as_path(m, key) for key, m in (("reward", reward), ("policy", policy))}
    request = check_request(
        as_path(data, "data"),
        columns=_columns(columns),
        format=format,
        skip_bad=skip_bad,
        max_unpacked=max_unpacked,
        media_folder=None if media_folder is None else as_path(media_folder, "media_folder"),
        reference=None if reference is None else as_path(reference, "reference"),
        max_tokens=max_tokens,
        **scorers,
    )
    return run_check(request, deep=deep, against=None if against is None else as_path(against, "against")).result


def _columns(columns: Any) -> dict[str, str] | None:
    if columns is not None and not isinstance(columns, Mapping):
        raise wrong(columns, "columns", 'names of the fields, such as {"chosen": "good"}')
    return dict(columns) if columns else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A requested check: the source, how to read it, and the scorer."""

    source: str
    reads: _Reads
    scorer: ScoreConfig | None


@dataclass(frozen=True, slots=True)
class Checked:
    """The audit, and the rows if they were kept."""

    audit: Audit
    notes: list[str]
    unread: list[str]
    dataset: Dataset | None

    @property
    def result(self) -> Result:
        """The check as plain values and in words."""
        reading_notes = {"notes": self.notes, "unread": self.unread}
        lines = lines_of(self.audit, self.notes, self.unread)
        return Result(asdict(self.audit) | reading_notes, lines, ok=self.audit.worst != "major")


def check_request(
    source: str,
    *,
    columns: dict[str, str] | None,
    format: str | None,
    skip_bad: bool,
    max_unpacked: float,
    media_folder: str | None,
    reward: str | None,
    policy: str | None,
    reference: str | None,
    max_tokens: int,
) -> Wanted:
    """The requested check, validated before anything is read.

    Raises:
        AfzalError: a scorer is incomplete.
    """
    from afzal import data

    max_bytes, rules = int(max_unpacked * 2**30), data.MediaRules(folder=media_folder or "")
    reads = _Reads(columns, format, "drop" if skip_bad else "raise", max_bytes, rules)
    return Wanted(source, reads, _scorer(source, reward, policy, reference, max_tokens))


def run_check(request: Wanted, *, deep: bool = False, against: str | None = None, keep: bool = False) -> Checked:
    """Run the requested audit. ``keep``: also return the rows, to show them."""
    from afzal import data, quality

    source, reads, scorer = request.source, request.reads, request.scorer
    dataset: Dataset | None = None
    with collector_paused():
        extra = [quality.Overlap(quality.HeldOutPrompts(data.stream(against)))] if against else []
        near_duplicates = "always" if deep else "small"
        if not keep and scorer is None and not data.is_mixture(source):
            # item by item, so that a file of any size needs little memory
            reading = data.Reading(source, **reads.keywords())
            audit = quality.audit_stream(reading, extra, near_duplicates)
            notes, unread = reading.notes(), reading.unread()
        else:
            dataset = data.read(source, **reads.keywords())
            audit = quality.audit(dataset, extra, near_duplicates)
            notes, unread = dataset.notes, dataset.unread
    if scorer is not None and dataset is not None:
        audit = replace(audit, findings=audit.findings + _by_scores(dataset, scorer))
    audit = replace(audit, not_run=audit.not_run + _not_requested(audit, against, scorer))
    return Checked(audit, notes, unread, dataset)


@dataclass(frozen=True, slots=True)
class _Reads:
    """How FILE is read; the fields are arguments of :class:`afzal.data.Reading`."""

    columns: dict[str, str] | None
    format: str | None
    on_error: str
    max_unpacked: int
    media: MediaRules

    def keywords(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _scorer(
    source: str, reward: str | None, policy: str | None, reference: str | None, max_tokens: int
) -> ScoreConfig | None:
    """The settings of the named scorer, if any."""
    if not (reward or policy or reference):
        return None
    from afzal import config

    flags = {"model": (reward, "--reward"), "policy": (policy, "--policy"), "reference": (reference, "--reference")}
    settings = [config.Setting(key, value, flag) for key, (value, flag) in flags.items() if value is not None]
    settings += [config.Setting("data", source, "FILE"), config.Setting("max_tokens", max_tokens, "--max-tokens")]
    return config.build(config.ScoreConfig, settings)


def _by_scores(dataset: Dataset, scorer: ScoreConfig) -> list[Finding]:
    from afzal import quality
    from afzal.rewards.score import heads

    per_item = [scores.mean(1).tolist() for scores in heads(scorer, dataset.items)]
    if not any(score == score for scores in per_item for score in scores):
        raise AfzalError("no response could be scored", where=dataset.source, remedy="look at the tokens with --model")
    return quality.scored_findings(zip(dataset.items, per_item, strict=True))


def _not_requested(audit: Audit, against: str | None, scorer: ScoreConfig | None) -> list[NotRun]:
    """Checks whose inputs (a test set, a scorer) were not given."""
    from afzal.quality import NotRun

    missing = []
    if against is None:
        missing.append(NotRun(("overlap",), "needs a test set", "--against TEST"))
    if scorer is None and audit.pairs:
        remedy = "--reward MODEL, or --policy MODEL --reference MODEL"
        missing.append(NotRun(("suspicious_pairs", "ambiguous_pairs"), "need scores", remedy))
    return missing


def counts(audit: Audit) -> dict[str, str]:
    """The figures of an audit by name, without those that are zero or meaningless for its kind of data."""
    sizes = ", ".join(f"{n} x {k}" for k, n in audit.responses_per_item.items())
    lengths = ", ".join(f"{name} {v['median']} / {v['p95']} / {v['max']}" for name, v in audit.characters.items())
    in_groups = f" in {audit.groups} groups" if audit.groups < audit.prompts else ""
    figures: dict[str, Any] = {
        "rows": f"{audit.rows} ({audit.kept} used)",
        "items": f"{audit.items} over {audit.prompts} prompts{in_groups}",
        "items x responses": sizes,
        "pairs": audit.pairs and f"{audit.pairs} ({audit.ties} ties, {audit.soft} with split or stated probability)",
        "both bad": audit.both_bad,
        "labels": (audit.good or audit.bad) and f"{audit.good} good, {audit.bad} bad",
        "axes": len(audit.axes) > 1 and f"{', '.join(audit.axes)} (pooled here; --axis trains on one of them)",
        "annotators": audit.annotators,
        "characters (median / 95% / max)": lengths,
    }
    return {name: str(figure) for name, figure in figures.items() if figure}


def lines_of(audit: Audit, notes: list[str], unread: list[str]) -> list[str]:
    """An audit in words, with notes on how the rows were read."""
    lines = [f"{one_line(audit.source)}: format {audit.format}", *(f"  {one_line(note)}" for note in notes)]
    lines += [f"  not read: {one_line(', '.join(unread))}"] if unread else []
    lines += [f"{name}: {figure}" for name, figure in counts(audit).items()]
    for finding in audit.findings:
        lines.append(f"{finding.severity:<5} {finding.code}: {one_line(finding.message)}")
        if finding.severity != "ok":
            lines += [f"      first: {one_line(', '.join(finding.ids[:5]))}"] if finding.ids else []
            lines += [f"      try: {finding.remedy}"] if finding.remedy else []
    return lines + [f"not run: {check}" for check in left_out(audit)]


def left_out(audit: Audit) -> list[str]:
    """The checks that were not run, why, and the flag that requests them."""
    return [f"{', '.join(check.codes)} ({check.why}): add {check.how}" for check in audit.not_run]
