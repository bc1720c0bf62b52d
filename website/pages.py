"""Pages generated from the code when the site is built: one page per method, and an index of settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from afzal.config import METHODS, section
from afzal.config.method import Cost, Method
from afzal.text import setting

_NO_SETTING = "method"


def pages() -> dict[str, str]:
    """The Markdown of every page, by its path below the documentation."""
    made = {f"methods/{method.name}.md": of_method(method) for method in METHODS.values()}
    return {"methods/index.md": of_methods(), **made, "settings.md": of_settings()}


def of_methods() -> str:
    """A table of all methods, with their pages as its children in the navigation."""
    lines = ["# Methods", "", "The methods of `afzal train METHOD`, generated from the code.", ""]
    lines += ["| method | description | learns from | paper |", "|---|---|---|---|"]
    lines += [
        f"| [`{m.name}`]({m.name}.md) | {_cell(m.line)} | {_learns_from(m)} | {_paper(m)} |" for m in METHODS.values()
    ]
    pages_below = ["```{toctree}", ":hidden:", "", *(m.name for m in METHODS.values()), "```"]
    return "\n".join([*lines, "", "[Which method?](../choosing.md) helps you choose.", "", *pages_below, ""])


def of_method(method: Method) -> str:
    """The page of one method: its requirements, usual learning rates and settings."""
    fields = {key: field for key, field in method.settings.model_fields.items() if key != _NO_SETTING}
    needed = " ".join(f"--{key} {key.upper()}" for key, field in fields.items() if field.is_required())
    lines = [f"# {method.name}", "", f"{method.line}", "", f"    afzal train {method.name} {needed}".rstrip(), ""]
    lines += [f"- {fact}" for fact in _facts(method)]
    headings: dict[str, list[str]] = {}
    for key, field in fields.items():
        headings.setdefault(section(method.settings, key), []).append(_row(key, field))
    for heading, rows in headings.items():
        lines += ["", f"## {heading}", "", "| setting | default | description |", "|---|---|---|", *rows]
    if method.paper:
        lines += ["", "## Paper", "", f"{_cell(method.paper.authors)} ({method.paper.year}). {_paper(method)}."]
    return "\n".join([*lines, ""])


def of_settings() -> str:
    """A table of every setting of `afzal train` by name, with the methods that have it."""
    by_key: dict[str, dict[str, FieldInfo]] = {}
    for method in METHODS.values():
        for key, field in method.settings.model_fields.items():
            if key != _NO_SETTING:
                by_key.setdefault(key, {})[method.name] = field
    lines = [
        "# Settings",
        "",
        "Every setting of `afzal train`, by name. Each is a flag, a YAML key and an override",
    ]
    lines += ["([command line](cli.md#settings)). Defaults may differ between methods.", ""]
    lines += ["| setting | description | default | methods |", "|---|---|---|---|"]
    for key, fields in sorted(by_key.items()):
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
        yield "It samples answers during training."
    if cost.value:
        yield "It trains a value model alongside the policy."
    if cost.reward_model:
        yield "A reward scores its answers."
    yield f"Usual peak learning rate for 1B to 70B parameters: {full} for full training, {adapted} with an adapter."
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
        "response": "answers labelled good or bad",
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
