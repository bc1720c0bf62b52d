"""The parts of a sweep page as plain data: rows of cells, sentences, and (name, value) pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afzal.report.comparison_views import Cell, Table, environment, settings
from afzal.text import interval, number, plural, setting, sign, signed

BASE = "a000"
_NOTHING = "\N{EM DASH}"
_GOALS = {"win_rate": "win rate against the start", "accuracy": "accuracy on held-out pairs"}

__all__ = [
    "BASE",
    "arms",
    "confirmation",
    "environment",
    "facts",
    "far",
    "findings",
    "front",
    "goal",
    "settings",
    "snapshots",
    "title",
]


def goal(body: Mapping[str, Any]) -> str:
    """The display name of the maximised figure."""
    return str(_GOALS.get(body["goal"]["maximize"], body["goal"]["reward"]))


def title(body: Mapping[str, Any]) -> str:
    """The title of the page."""
    return f"{plural(len(body['arms']), 'arm')} by {goal(body)}"


def facts(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The setup of the sweep."""
    s = body["settings"]
    examples = sorted({a["examples"] for a in body["arms"]})
    return [
        ("search", f"{s['search']} over {', '.join(body['axes'])}"),
        ("KL budget", f"{number(body['goal']['kl'], 3)} nats per answer"),
        (
            "examples per arm",
            number(examples[0]) if len(examples) == 1 else f"{number(examples[0])} to {number(examples[-1])}",
        ),
        ("seeds", _seed_list(body["seeds"])),
        ("held-out prompts", f"{number(body['prompts'])}, {s['samples']} answers each"),
    ]


def findings(body: Mapping[str, Any]) -> list[str]:
    """The findings in sentences, the most important one first."""
    arm, chosen = _chosen(body)
    if arm is None or chosen is None:
        sentences = [_nothing_chosen(body)]
    else:
        when = f", after {number(chosen['steps'][0])} of {number(arm['updates'])} updates"
        when = "" if chosen["steps"][0] == arm["updates"] else when
        sentences = [
            f"{_arm_name(arm)} has the highest {goal(body)} within {number(body['goal']['kl'], 3)} nats of KL: "
            f"{_with_interval(body, chosen['goal'])} at a KL of {number(chosen['kl']['value'], 3)}{when}."
        ]
        sentences += _confirmation_sentences(body, chosen)
    sentences += [
        f"Of {name}, {number(count)} were in the training data: figures on them are too optimistic."
        for name, count in body["trained_on"].items()
        if count
    ]
    if len(body["seeds"]) < 2:
        sentences.append("There is only one seed, so the variation between seeds is unknown.")
    counts = {status: [a for a in body["arms"] if a["status"] == status] for status in ("failed", "pruned")}
    sentences += [
        f"{plural(len(rows), 'arm')} {status}: {', '.join(map(_arm_name, rows))}."
        for status, rows in counts.items()
        if rows
    ]
    over_budget = [a for a in body["arms"] if a["status"] == "finished" and a["best"] is None]
    if over_budget and chosen is not None:
        sentences.append(f"{plural(len(over_budget), 'arm')} never had a snapshot within the budget.")
    return sentences


def _nothing_chosen(body: Mapping[str, Any]) -> str:
    kls = [c["kl"]["value"] for a in body["arms"] for c in a["candidates"] if c["kl"]["value"] is not None]
    if not kls:
        return "No arm finished, so nothing was chosen."
    least = number(min(kls), 3)
    return (
        f"No snapshot is within the KL budget, so nothing was chosen; the nearest has a KL of {least} nats per answer."
    )


def _confirmation_sentences(body: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    c = body["confirmation"]
    if c is None:
        return [
            "The choice was not confirmed with fresh seeds: its figure is the best of many, hence too high on average."
        ]
    if c["choice"] is None:
        return [f"The choice failed with a fresh seed: {next(iter(c['failures'].values()))}."]
    fresh, change = c["choice"], c["choice"]["goal"]["value"] - chosen["goal"]["value"]
    curse = "the winner's curse" if change < 0 else "no winner's curse this time"
    opening = f"With fresh seeds ({_seed_list(c['seeds'])})" + (" and fresh prompts" if c["fresh_prompts"] else "")
    sentences = [
        f"{opening}, it has {_with_interval(body, fresh['goal'])} at a KL of {number(fresh['kl']['value'], 3)}: "
        f"{_difference(body, change)} compared with the figure it was chosen by ({curse})."
    ]
    if not fresh["within"]:
        sentences.append("With fresh seeds, the choice is beyond the KL budget.")
    return [*sentences, *_against_base(body, c), *_base_at_its_end(body)]


def _against_base(body: Mapping[str, Any], c: Mapping[str, Any]) -> list[str]:
    """Whether the choice beats base, on the fresh seeds alone."""
    if body["choice"]["arm"] == BASE:
        return ["The choice is base itself: no other arm is better within the budget."]
    d = c["difference"]
    if d is None:
        return ["Base has no figure to compare with: it did not finish."]
    figure = _difference(body, d["value"]) + _ends(body, d)
    if not c["base"]["within"]:
        figure += "; base is beyond the KL budget"
    if sign(d) > 0:
        return [f"The choice beats base with fresh seeds: {figure}."]
    if sign(d) < 0:
        return [f"The choice is worse than base with fresh seeds: {figure}."]
    return [f"The choice does not beat base with fresh seeds: {figure}."]


def _base_at_its_end(body: Mapping[str, Any]) -> list[str]:
    """Whether base is beyond the budget at the end of its training."""
    ends = [a["candidates"][-1]["kl"]["value"] for a in body["arms"] if a["name"] == BASE and a["candidates"]]
    beyond = [kl for kl in ends if kl is not None and kl > body["goal"]["kl"]]
    return [f"Trained to its end, base is beyond the budget, at a KL of {number(kl, 3)}." for kl in beyond]


def front(body: Mapping[str, Any]) -> str:
    """The front in a sentence."""
    frontier = body["front"]
    snapshots = plural(len(frontier["points"]), "snapshot")
    knee = frontier["knee"]
    sentence = f"{snapshots} on the front; "
    if knee is None:
        sentence += "it has no knee"
    else:
        arm = next(a for a in body["arms"] if a["name"] == knee["arm"])
        sentence += f"its knee is {_arm_name(arm)} at step {number(arm['candidates'][knee['place']]['steps'][0])}"
    return f"{sentence}; the area under it, up to the budget and above the start: {number(frontier['hypervolume'], 3)}."


def far(body: Mapping[str, Any], largest_kl: float) -> str:
    """A sentence on the number of snapshots that are too far away to be drawn."""
    kls = [c["kl"]["value"] for a in body["arms"] if a["status"] == "finished" for c in a["candidates"]]
    beyond = sum(kl is not None and kl > largest_kl for kl in kls)
    return f"Not drawn: {plural(beyond, 'snapshot')} beyond {number(largest_kl, 3)} nats." if beyond else ""


def confirmation(body: Mapping[str, Any]) -> Table:
    """The figures behind the choice and those of fresh seeds, for the choice and for base."""
    c, (arm, chosen) = body["confirmation"], _chosen(body)
    columns = ["", "seeds", goal(body), "KL, nats", "tokens", "without EOS"]
    if c is None or arm is None or chosen is None:
        return {"columns": columns, "rows": []}
    rows = [_figures(body, f"{arm['name']}, chosen by", body["seeds"], chosen)]
    rows.append(_figures(body, f"{arm['name']}, confirmed", c["seeds"], c["choice"]))
    base = next((a for a in body["arms"] if a["name"] == BASE), None)
    if arm["name"] != BASE and base is not None and c["base_place"] is not None:
        rows.append(_figures(body, "base, same seeds", body["seeds"], base["candidates"][c["base_place"]]))
        rows.append(_figures(body, "base, confirmed", c["seeds"], c["base"]))
    return {"columns": columns, "rows": rows}


def _figures(body: Mapping[str, Any], name: str, seeds: Sequence[int], row: Mapping[str, Any] | None) -> list[Cell]:
    if row is None:
        return [(name, "failed"), (_seed_list(seeds), ""), *[(_NOTHING, "")] * 4]
    cells = [(name, f"step {number(row['steps'][0])}"), (_seed_list(seeds), ""), _goal_cell(body, row["goal"])]
    return [*cells, _cell(row["kl"]), (number(row["tokens"], 3), ""), (_percent(row["unended"]), "")]


def arms(body: Mapping[str, Any]) -> Table:
    """Every arm at its best snapshot within the budget, in order; failed arms come last."""
    columns = ["arm", *body["axes"], goal(body), "KL, nats", "step", "examples", "front"]
    return {"columns": columns, "rows": [_arm(body, a) for a in body["arms"]]}


def _arm(body: Mapping[str, Any], arm: Mapping[str, Any]) -> list[Cell]:
    name = "base" if arm["name"] == BASE else ""
    cells: list[Cell] = [(arm["name"], name), *((_setting_text(arm["values"].get(key)), "") for key in body["axes"])]
    tail: list[Cell] = [(number(arm["examples"]), "")]
    if arm["status"] != "finished" or arm["best"] is None:
        why = {"failed": "failed", "pruned": f"pruned after {plural(arm['seeds'], 'seed')}"}.get(arm["status"], "")
        nearest = min((c["kl"]["value"] for c in arm["candidates"] if c["kl"]["value"] is not None), default=None)
        note = (_NOTHING, why or "beyond the budget")
        return [
            *cells,
            note,
            (number(nearest, 3), "at least") if nearest is not None else ("", ""),
            ("", ""),
            *tail,
            ("", ""),
        ]
    top = arm["candidates"][arm["best"]]
    step = (number(top["steps"][0]), "" if top["steps"][0] == arm["updates"] else f"of {number(arm['updates'])}")
    return [
        *cells,
        _goal_cell(body, top["goal"]),
        _cell(top["kl"]),
        step,
        *tail,
        ("yes" if top["on_front"] else "", ""),
    ]


def snapshots(body: Mapping[str, Any]) -> Table:
    """All candidates."""
    other_rewards = [
        n for n in body["settings"]["rewards"] if n != body["goal"]["reward"] or body["goal"]["maximize"] != "reward"
    ]
    columns = ["arm", "step", goal(body), "KL, nats", "within", "front", *other_rewards, "tokens", "without EOS"]
    rows = []
    for arm in body["arms"]:
        for c in arm["candidates"]:
            marks = [("yes" if c[key] else "", "") for key in ("within", "on_front")]
            tail = [(number(c["rewards"][n], 3), "") for n in other_rewards]
            tail += [(number(c["tokens"], 3), ""), (_percent(c["unended"]), "")]
            rows.append(
                [
                    (arm["name"], ""),
                    (number(c["steps"][0]), ""),
                    _goal_cell(body, c["goal"]),
                    _cell(c["kl"]),
                    *marks,
                    *tail,
                ]
            )
    return {"columns": columns, "rows": rows}


def _chosen(body: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    choice = body["choice"]
    if choice is None:
        return None, None
    arm = next(a for a in body["arms"] if a["name"] == choice["arm"])
    return arm, arm["candidates"][choice["place"]]


def _arm_name(arm: Mapping[str, Any]) -> str:
    return "Base" if arm["name"] == BASE else f"{arm['name']} ({arm['label']})"


def _setting_text(value: Any) -> str:
    if value is None:
        return _NOTHING
    return setting(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _seed_list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _is_share(body: Mapping[str, Any]) -> bool:
    return body["goal"]["maximize"] != "reward"


def _goal_cell(body: Mapping[str, Any], figure: Mapping[str, Any]) -> Cell:
    if not _is_share(body) or figure["value"] is None:
        return _cell(figure)
    return _percent(figure["value"]), _ends(body, figure).strip()


def _with_interval(body: Mapping[str, Any], figure: Mapping[str, Any]) -> str:
    value = _percent(figure["value"]) if _is_share(body) else number(figure["value"])
    return value + _ends(body, figure)


def _ends(body: Mapping[str, Any], figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return ""
    if _is_share(body):
        return f" [{_points(figure['low'])}, {_points(figure['high'])}]"
    return f" {interval(figure['low'], figure['high'])}"


def _difference(body: Mapping[str, Any], value: float) -> str:
    if not _is_share(body):
        return signed(value, 3)
    return ("+" if value > 0 else "") + f"{_points(value)} points"


def _points(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float) -> str:
    return f"{_points(value)}%"


def _cell(figure: Mapping[str, Any]) -> Cell:
    return number(figure["value"]), interval(figure["low"], figure["high"])
