"""Settings as command-line flags: one flag per field, with the field's description as its help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from afzal.config import Setting, Settings, members, section
from afzal.text import setting

_METAVAR = {int: "INTEGER", float: "NUMBER", str: "TEXT", dict: "KEY=VALUE,...", list: "NAME,..."}


def flag(key: str) -> str:
    """The flag of a key: ``--max-tokens`` for ``max_tokens``; ``-n`` for ``n``, which ``--n`` also names."""
    return "-" + key if len(key) == 1 else "--" + key.replace("_", "-")


def off(key: str) -> str:
    """The flag that turns a switch off: ``--no-clean`` for ``clean``."""
    return "--no-" + key.replace("_", "-")


def parameters(kind: type[Settings], panel: str | None = None) -> list[inspect.Parameter]:
    """A keyword parameter for each field of ``kind`` except ``method``; None means that the flag was not given.

    Values stay text, so that files and flags are parsed by the same code and refused with the same message. A switch
    can only leave its default; ``key=value`` goes back to it.
    """
    fields = {key: field for key, field in kind.model_fields.items() if key != "method"}
    headings = {key: panel or section(kind, key) for key in fields}
    keys = sorted(fields, key=lambda key: _ORDER.index(headings[key]) if headings[key] in _ORDER else 0)
    return [_parameter(key, fields[key], headings[key]) for key in keys]


def given(kind: type[Settings], values: Mapping[str, Any]) -> list[Setting]:
    """The flags that were given, as settings."""
    return [
        Setting(key, ",".join(value) if isinstance(value, list) else value, flag(key), typed=True)
        for key in kind.model_fields
        if (value := values.get(key)) not in (None, [])
    ]


def with_parameters(run: Callable[..., Any], added: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """``run(**values)`` as a function whose signature has the parameters of ``run`` and then ``added``."""
    parameters = [p for p in inspect.signature(run, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]

    def command(**values: Any) -> Any:
        return run(**values)

    all_parameters = [*parameters, *added]
    command.__doc__ = run.__doc__
    command.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in all_parameters])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in all_parameters}
    return command


_ORDER = ("Data", "Model", "Optimisation", "Rollouts", "Objective", "Constraint", "Evaluation", "Run")


def _parameter(key: str, field: FieldInfo, heading: str) -> inspect.Parameter:
    kinds = members(field.annotation) - {type(None)}
    is_switch = kinds == {bool}
    option = typer.Option(
        *((f" /{off(key)}",) if field.default is True else dict.fromkeys((flag(key), f"--{key.replace('_', '-')}"))),
        help=sentence(field).replace("[", r"\["),
        rich_help_panel=heading,
        metavar=None if is_switch else " | ".join(_metavar(k) for k in sorted(kinds, key=str)),
        show_default=False,
    )
    repeats = any(get_origin(k) in (dict, list) for k in kinds)  # --objective-arg a=1 --objective-arg b=2
    plain = bool | None if is_switch else list[str] | None if repeats else str | None
    annotation = Annotated[plain, option]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def sentence(field: FieldInfo) -> str:
    """The help text of a field: its description, choices and default."""
    choices = [name for k in members(field.annotation) if get_origin(k) is Literal for name in get_args(k)]
    text = " ".join([field.description or "", *([f"One of {', '.join(choices)}."] if choices else [])])
    if field.is_required():
        return f"{text} Required."
    if field.default in (None, "", {}) or field.default is False:
        return text
    shown = setting(field.default) if isinstance(field.default, float) else field.default
    shown = "true" if shown is True else shown
    return f"{text} Default {shown}."


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "CHOICE"
    return _METAVAR[get_origin(kind) or kind]
