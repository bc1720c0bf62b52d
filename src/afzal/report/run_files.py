"""Read a run folder for a report: everything that can be read, and a note for everything that cannot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afzal.drops import FILE, OLD_FILE
from afzal.errors import AfzalError
from afzal.report import judge_sections, sections, task_section
from afzal.report.sections import Section
from afzal.runs import redact_config, redact_texts
from afzal.text import is_number, plural

_MAX_DEPTH = 20  # of run.yaml


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The contents of a run folder. ``notes`` lists in words what is missing or damaged."""

    path: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    data: dict[str, Any]
    dropped: list[dict[str, Any]]
    sections: list[Section]
    notes: list[str]

    @property
    def name(self) -> str:
        return redact_texts(self.path.resolve().name)


def load(path: Path) -> RunFiles:
    """Read a run folder, whatever a killed or failed run has left there.

    Raises:
        AfzalError: ``path`` is not a run folder (there is no ``run.json`` in it).
    """
    if not (path / "run.json").is_file():
        what = f"{path} is not a run folder: it has no run.json" if path.is_dir() else f"there is no folder {path}"
        raise AfzalError(what, remedy="give the folder that `afzal train` wrote; `afzal runs` lists them")
    notes: list[str] = []
    facts = redact_texts(_json(path / "run.json", notes))
    metrics = sorted(_lines(path / "metrics.jsonl", notes), key=_step)
    config = redact_config(_yaml(path / "run.yaml", notes))
    # a reward model writes no samples, nor does a run with sample_prompts=0
    sample_notes = notes if config.get("sample_prompts", None if config else True) else []
    return RunFiles(
        path=path,
        facts=facts,
        config=config,
        metrics=metrics,
        samples=redact_texts(_lines(path / "samples.jsonl", sample_notes)),
        data=redact_texts(_json(path / "data.json", notes)),
        dropped=redact_texts(_lines(path / (FILE if (path / FILE).exists() else OLD_FILE), [])),
        sections=[
            *task_section.sections(facts, metrics),
            *_stored_sections(path, notes),
            *judge_sections.read(path, notes),
        ],
        notes=notes,
    )


def enriched_facts(run: RunFiles) -> dict[str, Any]:
    """The facts of ``run.json`` with the configuration (``config``) and a summary of the samples (``samples``)."""
    samples = {s: summary for s in ("before", "after") if (summary := _summary(run.samples, s))}
    return {**run.facts, "config": run.config or run.facts.get("config", {}), "samples": samples}


def lost_rows(run: RunFiles) -> dict[str, Counter[str]]:
    """Rows by action (``dropped``, ``cut``) and reason: from ``run.json``, else counted from ``dropped.jsonl``."""
    counted: dict[str, Counter[str]] = {"dropped": Counter(), "cut": Counter()}
    for row in run.dropped:
        counted.setdefault(str(row.get("action", "dropped")), Counter())[str(row.get("reason", "unknown"))] += 1
    recorded = run.facts.get("data")
    for action in ("dropped", "cut"):
        reasons = recorded.get(action) if isinstance(recorded, Mapping) else None
        if isinstance(reasons, Mapping):
            counted[action] = Counter({str(k): int(v) for k, v in reasons.items() if is_number(v)})
    return counted


def _summary(samples: Sequence[Mapping[str, Any]], stage: str) -> dict[str, float]:
    """Count, mean tokens and share that ended with EOS, with standard errors (the share's after adding one of each)."""
    chosen = [s for s in samples if s.get("stage") == stage]
    lengths = [float(s["tokens"]) for s in chosen if is_number(s.get("tokens"))]
    if not lengths:
        return {}
    mean = sum(lengths) / len(lengths)
    spread = sum((v - mean) ** 2 for v in lengths) / max(len(lengths) - 1, 1)
    n, ended = len(chosen), sum(s.get("stop") == "eos" for s in chosen)
    share = (ended + 1) / (n + 2)
    return {
        "n": n,
        "length": mean,
        "length_se": (spread / len(lengths)) ** 0.5,
        "eos_rate": ended / n,
        "eos_rate_se": (share * (1 - share) / n) ** 0.5,
    }


def _step(record: Mapping[str, Any]) -> float:
    step = record.get("step")
    return step if is_number(step) else -1.0


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return ""


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    body = _text(path, notes)
    if not body:
        return {}
    try:
        value = json.loads(body)
    except ValueError as error:
        notes.append(f"{path.name} could not be read: {error}.")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} does not hold a JSON object.")
        return {}
    return value


def _yaml(path: Path, notes: list[str]) -> dict[str, Any]:
    import yaml

    try:
        text = _text(path, notes)
        if not _is_flat(text):
            notes.append(f"{path.name} has aliases or is nested too deeply, so it was not read.")
            return {}
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        notes.append(f"{path.name} could not be read: {str(error).splitlines()[0]}.")
        return {}
    return value if isinstance(value, dict) else {}


def _is_flat(text: str) -> bool:
    """Whether YAML has no aliases and little nesting: with aliases, a few lines can mean any number of values."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
            return False
    return True


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. Damaged lines, such as a torn last one, are skipped with a note."""
    rows, bad = [], []
    for number, line in enumerate(_text(path, notes).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(number)
    if bad:
        notes.append(f"{path.name}: {plural(len(bad), 'damaged line')} skipped (line {bad[0]}).")
    return rows


def _stored_sections(path: Path, notes: list[str]) -> list[Section]:
    try:
        return sections.read(path)
    except ValueError as error:
        notes.append(f"{error}.")
        return []
