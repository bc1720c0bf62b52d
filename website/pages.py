"""Pages that are made of the code's own facts when the site is built: a page per method, and an index of settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from afzal.config import METHODS, section
from afzal.config.method import Cost, Method
from afzal.text import setting

_NO_SETTING = "method"


def pages() -> dict[str, str]:
    """The Markdown of every page, by its place below the documentation."""
    made = {f"methods/{method.name}.md": of_method(method) for method in METHODS.values()}
    return {"methods/index.md": of_methods(), **made, "settings.md": of_settings()}


def of_methods() -> str:
    """A table of all methods, with their pages below it in the navigation."""
    lines = ["# Methods", "", "What `afzal train METHOD` knows of each, from the code that trains it.", ""]
    lines += ["| method | what it is | learns from | paper |", "|---|---|---|---|"]
    lines += [
        f"| [`{m.name}`]({m.name}.md) | {_cell(m.line)} | {_learns_from(m)} | {_paper(m)} |" for m in METHODS.values()
    ]
    pages_below = ["```{toctree}", ":hidden:", "", *(m.name for m in METHODS.values()), "```"]
    return "\n".join([*lines, "", "[Which one?](../choosing.md) says when to take which.", "", *pages_below, ""])


def of_method(method: Method) -> str:
    """Everything that the code states of one method: what it needs, its usual rates, its settings."""
    fields = {key: field for key, field in method.settings.model_fields.items() if key != _NO_SETTING}
    needed = " ".join(f"--{key} {key.upper()}" for key, field in fields.items() if field.is_required())
    lines = [f"# {method.name}", "", f"{method.line}", "", f"    afzal train {method.name} {needed}".rstrip(), ""]
    lines += [f"- {fact}" for fact in _facts(method)]
    headings: dict[str, list[str]] = {}
    for key, field in fields.items():
        headings.setdefault(section(method.settings, key), []).append(_row(key, field))
    for heading, rows in headings.items():
        lines += ["", f"## {heading}", "", "| setting | default | what it is |", "|---|---|---|", *rows]
    if method.paper:
        lines += ["", "## Paper", "", f"{_cell(method.paper.authors)} ({method.paper.year}). {_paper(method)}."]
    return "\n".join([*lines, ""])


def of_settings() -> str:
    """Every setting of `afzal train` by name, with the methods that have it."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for method in METHODS.values():
        for key, field in method.settings.model_fields.items():
            if key != _NO_SETTING:
                found.setdefault(key, {})[method.name] = field
    lines = [
        "# Settings",
        "",
        "Every setting of `afzal train`, by name. Each is a flag, a key of a YAML file and an override",
    ]
    lines += ["([command line](cli.md#settings)). Defaults may differ from method to method.", ""]
    lines += ["| setting | what it is | default | methods |", "|---|---|---|---|"]
    for key, fields in sorted(found.items()):
        defaults = list(dict.fromkeys(map(_default, fields.values())))
        links = ", ".join(f"[{name}](methods/{name}.md)" for name in fields)
        shown = "all" if len(fields) == len(METHODS) else links
        lines.append(
            f"| `{key}` | {_cell(next(iter(fields.values())).description)} | {', '.join(defaults)} | {shown} |"
        )
    return "\n".join([*lines, ""])


def _facts(method: Method) -> Iterator[str]:
    cost: Cost = method.cost
    full, adapted = (f"{setting(low)} to {setting(high)}" for low, high in method.usual_lr)
    yield f"Learns from {_learns_from(method)}."
    yield f"It {'needs a reference model' if cost.reference else 'has no reference model'}."
    if cost.online:
        yield "It samples answers of its own while it trains."
    if cost.value:
        yield "It trains a value model beside the policy."
    if cost.reward_model:
        yield "Its answers are scored by a reward."
    yield f"Usual peak learning rate for 1B to 70B weights: {full} with all weights, {adapted} with an adapter."
    if method.small_batches:
        yield "Fewer than eight items per update are usual."
    if method.over_optimises:
        yield "More than a few epochs over the same data are usually too many."


def _learns_from(method: Method) -> str:
    if method.online:
        return "rewards of its own answers"
    return {
        "pair": "pairs of answers, one of them better",
        "group": "rankings of several answers",
        "response": "answers that are labelled good or bad",
        "token": "good answers",
    }[method.unit]


def _paper(method: Method) -> str:
    if method.paper is None:
        return ""
    return f"[{_cell(method.paper.title)}](https://arxiv.org/abs/{method.paper.arxiv})"


def _row(key: str, field: FieldInfo) -> str:
    return f"| `{key}` | {_default(field)} | {_cell(field.description)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if value in (None, "", {}, []):
        return "none"
    return (
        {True: "yes", False: "no"}.get(value, f"`{setting(value)}`")
        if isinstance(value, bool | float)
        else f"`{value}`"
    )


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
