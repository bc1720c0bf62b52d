"""A comparison of methods as a self-contained page, a picture, CSV and JSON.

All four come from the same plain values (``compare.json``), so they cannot disagree.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from afzal._version import __version__
from afzal.report import comparison_judges
from afzal.report import comparison_views as views
from afzal.report.frontier import PolicyPoint, frontier_svg
from afzal.report.phone_layout import PHONE
from afzal.report.svg import Series, standalone
from afzal.report.template import rendered
from afzal.runs import atomic_write

HTML, JSON, CSV, SVG = "compare.html", "compare.json", "compare.csv", "compare.svg"
SCHEMA = "afzal.compare/1"
PALETTE = (2, 3, 1, 5, 7, 9, 8, 10, 11, 6)
_MAIN, _SMALL, _HIGH = (960, 470), (560, 330), 300


def write_comparison(folder: Path, body: Mapping[str, Any]) -> Path:
    """Write the figures, the page and the picture; return the page's path.

    Args:
        body: from :func:`afzal.compare.summary.summary`, with settings, runs and environment.
    """
    data = {"schema": SCHEMA, "afzal": __version__, **body}
    atomic_write(folder / JSON, json.dumps(data, indent=1, allow_nan=False) + "\n")
    atomic_write(folder / CSV, to_csv(data))
    atomic_write(folder / HTML, to_html(data).encode("utf-8", "replace"))
    atomic_write(folder / SVG, standalone(_drawing(data, "kl", data["rewards"][0], _MAIN, str)["drawing"]))
    return folder / HTML


def to_csv(body: Mapping[str, Any]) -> str:
    """One row per method, seed and step, including the start; unrounded numbers, KL in nats per answer."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rewards = body["rewards"]
    cost = ("seconds", "tokens", "generated")
    writer.writerow(
        ["method", "label", "kind", "seed", "step", "kl", "kl_se", "kl_is_bound"]
        + [f"{name}_{part}" for name in rewards for part in ("mean", "sum", "count")]
        + ["reward_se", "gain", "gain_low", "gain_high", "win_rate", "win_low", "win_high"]
        + ["tokens_per_answer", "share_without_eos", "drawn_per_answer", *(f"cost_{name}" for name in cost)]
    )
    start = {"name": "start", "label": "the start", "kind": "start", "kl_is_bound": False}
    for m in ({**start, "points": body["start_points"]}, *body["methods"]):
        for p in m["points"]:
            writer.writerow(
                [m["name"], m["label"], m["kind"], p["seed"], p["step"], p["kl"]["mean"], p["kl_se"], m["kl_is_bound"]]
                + [p["rewards"][name][part] for name in rewards for part in ("mean", "sum", "count")]
                + [p["reward_se"], *(p[k][part] for k in ("gain", "win") for part in ("value", "low", "high"))]
                + [p["tokens"]["mean"], p["unended"]["mean"], p["drawn_per_answer"], *(p["cost"][k] for k in cost)]
            )
    return out.getvalue()


def to_html(body: Mapping[str, Any]) -> str:
    """The page. Every value is escaped by the template; only drawings made by :mod:`afzal.report.svg` are markup."""
    from markupsafe import Markup

    chief = body["rewards"][0]
    return rendered(
        "comparison.html.j2",
        title=views.title(body),
        facts=views.facts(body),
        findings=[*views.findings(body), *comparison_judges.disagreements(body)],
        chief=chief,
        main=_figure(body, "kl", chief, _MAIN, Markup),
        others=[_figure(body, "kl", name, _SMALL, Markup) for name in (*body["rewards"][1:], "tokens", "unended")],
        cost=_figure(body, "seconds", chief, _SMALL, Markup),
        table=views.table(body),
        matched=views.matched(body),
        wins=views.wins(body),
        judges=_judges(body) if body["judges"] else None,
        costs=views.costs(body),
        seeds=views.per_seed(body),
        samples=views.samples(body),
        runs=views.runs(body),
        environment=views.environment(body),
        settings=views.settings(body),
    )


def _judges(body: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of the section on judges."""
    return {
        "start": comparison_judges.against_the_start(body),
        "reliability": comparison_judges.reliability(body),
        "agreement": comparison_judges.agreement(body),
        "each": comparison_judges.win_tables(body),
        "people": comparison_judges.has_people(body),
    }


def _figure(body: Mapping[str, Any], across: str, up: str, size: tuple[int, int], markup: type[str]) -> dict[str, Any]:
    """The result of :func:`_drawing`, with a second drawing for phones."""
    return _drawing(body, across, up, size, markup) | {
        "on_a_phone": _drawing(body, across, up, (PHONE, _HIGH), markup)["drawing"]
    }


def _drawing(body: Mapping[str, Any], across: str, up: str, size: tuple[int, int], markup: type[str]) -> dict[str, Any]:
    """Every method's path, ``up`` against ``across`` (names of figures or rewards), with a band or individual seeds."""
    single, paths = [], []
    for place, (method, colour) in enumerate(zip(body["methods"], cycle(PALETTE), strict=False)):
        single += seeds(method, across, up, colour)
        paths += [s for s in [method_line(method, across, up, colour, place)] if s.points]
    spots = [
        PolicyPoint(s.name, s.points[-1][0], y, colour=s.colour) for s in paths if (y := s.points[-1][1]) is not None
    ]
    title = f"{views.display_name(up)} against {views.display_name(across)}"
    drawing = frontier_svg(
        spots,
        (),
        paths=[*single, *paths],
        title=title,
        x_label=views.display_name(across),
        y_label=views.display_name(up),
        size=size,
    )
    return {"title": title, "drawing": markup(drawing), "legend": paths}


def method_line(method: Mapping[str, Any], across: str, up: str, colour: int = 0, place: int = 0) -> Series:
    """The curve of one method as a line: means over seeds, with the interval of ``up`` as a band.

    Two seeds have no band, since their interval would be far too wide to be useful; :func:`seeds` draws them instead.
    """
    points = [c for c in method["curve"] if c["seeds"]]
    rows = [(value(c, across), value(c, up)) for c in points]
    low, high = (
        tuple(None if c["seeds"] == 2 else y[end] for c, (_, y) in zip(points, rows, strict=True))
        for end in ("low", "high")
    )
    has_band = any(v is not None for v in low)
    return Series(
        method["label"],
        tuple((x["value"], y["value"]) for x, y in rows),
        colour,
        "line" if place < len(PALETTE) // 2 else "dashed",
        low if has_band else (),
        high if has_band else (),
    )


def seeds(method: Mapping[str, Any], across: str, up: str, colour: int) -> list[Series]:
    """The individual seeds of a method as thin lines, if there are two or three; otherwise none."""
    by_seed: dict[Any, list[tuple[float, float | None]]] = {}
    for p in method["points"]:
        by_seed.setdefault(p["seed"], []).append((_seed_figure(p, across) or 0.0, _seed_figure(p, up)))
    if not 2 <= len(by_seed) <= 3:
        return []
    return [
        Series(f"{method['label']}, seed {seed}", tuple(points), colour, "faint") for seed, points in by_seed.items()
    ]


def _seed_figure(point: Mapping[str, Any], name: str) -> float | None:
    """A figure of one seed's snapshot by name; :func:`value` has the figures over all seeds."""
    if name == "seconds":
        return point["cost"]["seconds"]
    return (point["rewards"][name] if name in point["rewards"] else point[name])["mean"]


def value(figures: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A figure with its interval, by the name of a reward or of another figure."""
    return figures["rewards"][name] if name in figures["rewards"] else figures[name]
