"""A sweep as a self-contained page, CSV and JSON, all from the same plain values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal._version import __version__
from afzal.report import sweep_views as views
from afzal.report.frontier import PolicyPoint, frontier_svg
from afzal.report.phone_layout import PHONE
from afzal.report.svg import Series
from afzal.report.template import rendered
from afzal.runs import atomic_write

HTML, JSON, CSV = "sweep.html", "sweep.json", "sweep.csv"
SCHEMA = "afzal.sweep/1"
_FAR = 3.0  # times the budget; snapshots farther away are counted and not drawn
_ARM, _CHOICE, _FRONT, _BASE = 0, 1, 2, 3  # colours
_SIZE = (680, 420)


def write_sweep(folder: Path, body: Mapping[str, Any]) -> Path:
    """Write the figures and the page; return the page's path.

    Args:
        body: from :func:`afzal.sweep.summary.summary`, with settings and environment.
    """
    data = {"schema": SCHEMA, "afzal": __version__, **body}
    atomic_write(folder / JSON, json.dumps(data, indent=1, allow_nan=False) + "\n")
    atomic_write(folder / CSV, to_csv(data))
    atomic_write(folder / HTML, to_html(data).encode("utf-8", "replace"))
    return folder / HTML


def to_csv(body: Mapping[str, Any]) -> str:
    """One row per arm and snapshot, and one for an arm without any; unrounded numbers, KL in nats per answer."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    axes, choice = body["axes"], body["choice"]
    figures = [f"{name}{end}" for name in ("goal", "kl") for end in ("", "_low", "_high")]
    head = ["arm", "status", "why", *axes, "seeds", "updates", "examples", "tokens", "snapshot", "step", *figures]
    writer.writerow([*head, "within_budget", "on_front", "chosen"])
    for arm in body["arms"]:
        facts = [arm["name"], arm["status"], arm["why"], *(arm["values"].get(key, "") for key in axes)]
        facts += [arm[key] for key in ("seeds", "updates", "examples", "tokens")]
        for place, c in enumerate(arm["candidates"]):
            values = [c[name][end] for name in ("goal", "kl") for end in ("value", "low", "high")]
            chosen = choice == {"arm": arm["name"], "place": place}
            writer.writerow([*facts, place, c["steps"][0], *values, c["within"], c["on_front"], chosen])
        if not arm["candidates"]:
            writer.writerow([*facts, *[""] * (len(head) - len(facts)), False, False, False])
    return out.getvalue()


def to_html(body: Mapping[str, Any]) -> str:
    """The page. Every value is escaped by the template; only drawings made by :mod:`afzal.report.svg` are markup."""
    from markupsafe import Markup

    drawing, legend = chart(body, _SIZE)
    return rendered(
        "sweep.html.j2",
        title=views.title(body),
        facts=views.facts(body),
        findings=views.findings(body),
        goal=views.goal(body),
        drawing=Markup(drawing),
        on_a_phone=Markup(chart(body, (PHONE, 300))[0]),
        legend=legend,
        far=views.far(body, _FAR * body["goal"]["kl"]),
        front=views.front(body),
        confirmation=views.confirmation(body),
        arms=views.arms(body),
        snapshots=views.snapshots(body),
        environment=views.environment(body),
        settings=views.settings(body),
    )


def chart(body: Mapping[str, Any], size: tuple[int, int]) -> tuple[str, list[Series]]:
    """The goal against KL: every arm's path from the start, the front, base and the choice; and its legend."""
    largest_kl, choice = _FAR * body["goal"]["kl"], body["choice"]
    arms = {a["name"]: a for a in body["arms"] if a["status"] == "finished"}
    chosen = choice["arm"] if choice else ""
    names = [*(n for n in arms if n not in (views.BASE, chosen)), *(n for n in (views.BASE, chosen) if n in arms)]
    arm_lines = [_arm_line(body, arms[n], largest_kl, n == chosen) for n in dict.fromkeys(names)]
    front = sorted((p["kl"]["value"], p["goal"]["value"]) for p in _points(arms, body["front"]["points"]))
    front_points = tuple((x, y) for x, y in front if x <= largest_kl)
    front_series = [Series("Pareto front", front_points, _FRONT, "dashed")] if len(front_points) > 1 else []
    policies = _policy_points(body, arms, largest_kl)
    drawing = frontier_svg(
        policies,
        (),
        paths=[*arm_lines, *front_series],
        title=f"{views.goal(body)} against KL",
        x_label="KL to the start, nats per answer",
        y_label=views.goal(body),
        limit=(body["goal"]["kl"], "KL budget"),
        size=size,
    )
    return drawing, _legend([*arm_lines, *front_series])


def _arm_line(body: Mapping[str, Any], arm: Mapping[str, Any], largest_kl: float, is_chosen: bool) -> Series:
    start = [] if body["goal"]["maximize"] == "accuracy" else [(0.0, body["start"])]
    rows = [(c["kl"]["value"], c["goal"]["value"]) for c in arm["candidates"]]
    points = (*start, *((x, y) for x, y in rows if x is not None and y is not None and x <= largest_kl))
    if is_chosen:
        return Series("the chosen arm", points, _CHOICE, "line")
    return (
        Series("base", points, _BASE, "line")
        if arm["name"] == views.BASE
        else Series("other arms", points, _ARM, "faint")
    )


def _points(arms: Mapping[str, Any], places: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [arms[p["arm"]]["candidates"][p["place"]] for p in places]


def _policy_points(body: Mapping[str, Any], arms: Mapping[str, Any], largest_kl: float) -> list[PolicyPoint]:
    """The knee, with the choice drawn on top."""
    spots = []
    for place, label, colour in ((body["front"]["knee"], "knee", _FRONT), (body["choice"], "choice", _CHOICE)):
        if place is not None and not (label == "knee" and place == body["choice"]):
            (point,) = _points(arms, [place])
            name = f"choice, {place['arm']}" if label == "choice" else label
            spots.append(PolicyPoint(name, point["kl"]["value"], point["goal"]["value"], colour=colour))
    return [s for s in spots if s.x <= largest_kl]


def _legend(series: Sequence[Series]) -> list[Series]:
    """One line of the legend for each name."""
    return list({s.name: s for s in series}.values())
