"""Turn a run folder into one self-contained HTML page, and the same facts as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from afzal._version import __version__
from afzal.health import Diagnosis, Verdict, alarms, diagnose, not_checked, verdict
from afzal.health.facts import writes
from afzal.report import sections, views
from afzal.report.charts import Figure, figures
from afzal.report.headline import Measure, measures
from afzal.report.next_steps import next_steps
from afzal.report.phone_layout import is_wide
from afzal.report.run_files import RunFiles, enriched_facts, load
from afzal.report.sections import FrontierChart, LineChart, Section
from afzal.report.template import rendered
from afzal.runs import atomic_write, redact_texts
from afzal.terminal.conclusion import Step

HTML, JSON = "report.html", "report.json"
SCHEMA = "afzal.report/1"


def build(run_path: str | Path, extra_sections: Sequence[Section] = ()) -> Path:
    """Write ``report.html`` and ``report.json`` into a run folder; return the path of the page.

    The page says what the run lacks (evaluations, samples, steps). ``extra_sections`` replace the sections stored with
    the run, so that a later call without them shows them again.

    Raises:
        AfzalError: ``run_path`` is not a run folder, or cannot be written.
    """
    path = Path(run_path)
    run = load(path)
    if extra_sections:
        sections.write(path, extra_sections)
        run = load(path)
    facts = enriched_facts(run)
    diagnoses = diagnose(run.metrics, facts)
    numbers = measures(run.metrics, facts)
    atomic_write(path / JSON, to_json(run, facts, diagnoses, numbers))
    atomic_write(path / HTML, to_html(run, facts, diagnoses, numbers).encode("utf-8", "replace"))
    return path / HTML


def to_html(run: RunFiles, facts: Mapping[str, Any], diagnoses: Sequence[Diagnosis], numbers: Sequence[Measure]) -> str:
    """The page. Every value is escaped by the template; only drawings made by :mod:`afzal.report.svg` are markup."""
    from markupsafe import Markup

    charts = [_figure(f, Markup) for f in figures(run.metrics, facts)]
    extra = [_section(s, Markup) for s in run.sections]
    outcome = verdict(diagnoses)
    samples = views.samples(run.samples, run.path)
    return rendered(
        "page.html.j2",
        title=run.name,
        subtitle=views.subtitle(facts),
        verdict=outcome,
        following=_following(run, facts, diagnoses),
        overview=views.overview(facts, run.metrics),
        contents=_contents(run.sections, facts),
        notes=run.notes,
        measures=numbers,
        measured=views.measured(numbers, run.metrics, facts),
        raised=alarms(diagnoses),
        passed=[d for d in diagnoses if d.severity == "good"],
        diagnoses=diagnoses,
        opened=[d for d in diagnoses if d.severity == "open"],
        unchecked=not_checked(diagnoses, facts),
        writes=writes(facts),
        extra=extra,
        figures=charts,
        evaluations=views.evaluations(run.metrics),
        samples=samples,
        plays=any(m["kind"] == "audio" for s in samples for m in s["media"]),
        sampled=views.sampled(run.samples, facts),
        data=views.data(run),
        run=views.run_facts(facts),
        environment=views.environment(facts),
        command=str(facts.get("command") or ""),
        config=views.config_text(run.config),
        glossary=views.glossary(facts),
    )


def to_json(run: RunFiles, facts: Mapping[str, Any], diagnoses: Sequence[Diagnosis], numbers: Sequence[Measure]) -> str:
    """The facts of the page for machines: strict JSON, finite numbers only."""
    outcome: Verdict = verdict(diagnoses)
    steps = _following(run, facts, diagnoses)
    body = {
        "schema": SCHEMA,
        "afzal": __version__,
        "run": run.name,
        "verdict": asdict(outcome),
        "next": steps[0].command,
        "steps": [{"words": step.words, "why": step.why} for step in steps],
        "measures": [asdict(m) for m in numbers],
        "diagnoses": [asdict(d) for d in diagnoses],
        "not_checked": not_checked(diagnoses, facts),
        "facts": facts,
        "data": run.data,
        "metrics": run.metrics,
        "sections": [sections.to_json(s) for s in run.sections],
        "notes": run.notes,
    }
    return json.dumps(_finite(body), indent=1, default=str, allow_nan=False) + "\n"


def _following(run: RunFiles, facts: Mapping[str, Any], diagnoses: Sequence[Diagnosis]) -> list[Step]:
    audit = run.data.get("audit") if isinstance(run.data, Mapping) else None
    return next_steps(redact_texts(str(run.path)), facts, diagnoses, audit if isinstance(audit, Mapping) else None)


def _contents(extra: Sequence[Section], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    first = [("numbers", "Before and after"), ("health", "Health")]
    middle = [(f"extra-{k}", s.title) for k, s in enumerate(extra, 1)]
    samples = [("samples", "Samples")] if writes(facts) else []
    last = [("curves", "Curves"), *samples, ("data", "Data")]
    return [*first, *middle, *last, ("configuration", "Configuration"), ("glossary", "Terms")]


def _figure(figure: Figure, markup: type[str]) -> dict[str, Any]:
    return {
        "title": figure.title,
        "caption": figure.caption,
        "legend": figure.legend,
        "drawing": markup(figure.drawing),
    }


def _section(section: Section, markup: type[str]) -> dict[str, Any]:
    chart, cells = section.chart, section.table.cells() if section.table else []
    legend = chart.series if isinstance(chart, LineChart) else chart.paths if isinstance(chart, FrontierChart) else ()
    return {
        "title": section.title,
        "paragraphs": section.paragraphs(),
        "drawing": markup(section.svg()),
        "on_a_phone": markup(section.on_a_phone()),
        "legend": legend,
        "table": section.table,
        "cells": cells,
        "is_wide": section.table is not None and is_wide(section.table.columns, [[t for t, _ in row] for row in cells]),
    }


def _finite(value: Any) -> Any:
    """The value with null in place of numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
