"""Say in plain words what is wrong with a setting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from afzal.errors import AfzalError

from .base import Settings, members
from .methods import CONFIGS
from .training import TrainConfig


@dataclass(frozen=True, slots=True)
class Setting:
    """One key and its value as given, and its source: ``file:line``, a flag, or nothing.

    ``typed`` values were typed on a command line; their field decides whether ``1e-6`` is a number.
    """

    key: str
    value: Any
    where: str = ""
    typed: bool = False


# Names that other trainers use, for "did you mean".
FOREIGN = {
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "tokens_per_forward",
    "gradient_checkpointing": "activation_checkpointing",
    "max_length": "max_tokens",
    "max_new_tokens": "sample_tokens",
    "max_completion_length": "sample_tokens",
    "num_generations": "n",
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset": "data",
    "dataset_name": "data",
    "train_file": "data",
    "output": "out",
    "output_dir": "out",
    "eval_steps": "eval_every_steps",
    "save_steps": "save_every_steps",
    "logging_steps": "log_every_steps",
    "lora_r": "lora_rank",
    "target_modules": "lora_targets",
    "peft_type": "adapter",
    "num_virtual_tokens": "virtual_tokens",
    "load_in_4bit": "quantize",
    "ref_model": "reference",
    "bf16": "dtype",
    "optim": "optimizer",
}


def suggestion(word: str, choices: Iterable[str]) -> str:
    """`` (did you mean X?)``, or an empty text if no known word is close."""
    choices = list(choices)
    foreign = FOREIGN.get(word)
    matches = (
        [foreign]
        if foreign in choices
        else get_close_matches(word, choices, n=5) or get_close_matches(word.lower(), choices, n=5)
    )
    if not matches:
        return ""
    # Typos rarely hit the first letter: of two equally close words, take the one that shares it.
    best = max(matches, key=lambda k: (SequenceMatcher(None, k, word).ratio(), k[0] == word[0]))
    return f" (did you mean {best}?)"


def unknown_setting_error(
    config_class: type[Settings], setting: Setting, settings: Mapping[str, Setting]
) -> AfzalError:
    """The error for a key that ``config_class`` does not have: a typo, or a setting of other methods."""
    owners = [name for name, config in CONFIGS.items() if setting.key in config.model_fields]
    if owners and issubclass(config_class, TrainConfig):
        method = settings["method"].value
        message = f"the setting {setting.key!r} has no effect on {method} (only on {', '.join(owners)})"
        by_name = f"objective_arg: {{{setting.key}: ...}}, if the objective has it"
        return AfzalError(message, where=setting.where, remedy=by_name if method == "prefer" else "leave it out")
    set_keys = {key for key, other_setting in settings.items() if _source(other_setting) == _source(setting)}
    free = config_class.model_fields.keys() - set_keys  # a flag may mean a key that the file has already set
    return AfzalError(f"unknown setting {setting.key!r}{suggestion(setting.key, sorted(free))}", where=setting.where)


def _source(setting: Setting) -> str:
    return setting.where.rpartition(":")[0] or setting.where


def validation_error(
    config_class: type[Settings], error: ValidationError, settings: Mapping[str, Setting]
) -> AfzalError:
    """Pydantic's findings as one error, in the order of the settings; missing ones last."""
    details = error.errors(include_url=False)
    missing = [str(d["loc"][0]) for d in details if d["type"] == "missing" and len(d["loc"]) == 1]
    errors = [_error_from(config_class, d, settings) for d in details if d["type"] != "missing" or len(d["loc"]) > 1]
    if missing:
        names = ", ".join(repr(key) for key in missing)
        message = f"the setting{'s' if len(missing) > 1 else ''} {names} {'are' if len(missing) > 1 else 'is'} missing"
        remedies = [f"set {key} ({_phrase(config_class.model_fields[key].description or '')})" for key in missing]
        errors.append(AfzalError(message, remedy="\n       ".join(remedies)))
    return join_errors(errors)


def _phrase(sentence: str) -> str:
    """A description as a part of another sentence."""
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _error_from(config_class: type[Settings], detail: Any, settings: Mapping[str, Setting]) -> AfzalError:
    message = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
    if not detail["loc"]:
        # A rule over several settings: point at the first one that its sentence names. A missing one has no place.
        by_position = (
            {}
            if re.match(r"\w+ is missing", message)
            else {m.start(): s for key, s in settings.items() if (m := re.search(rf"\b{key}\b", message))}
        )
        return AfzalError(message, where=by_position[min(by_position)].where if by_position else "")
    key = str(detail["loc"][0])
    setting = settings.get(key, Setting(key, detail["input"]))
    inner = _nested_class(config_class.model_fields[key])
    if inner is not None and (len(detail["loc"]) > 1 or message):
        return AfzalError(_nested_message(inner, detail["loc"][1:], detail, key, message), where=setting.where)
    if message and isinstance(setting.value, list | dict) and any(isinstance(v, list | dict) for v in setting.value):
        return AfzalError(f"{key}: {message}", where=setting.where)  # a long value would add nothing to the sentence
    expected = message or f"wanted: {_allowed_values(config_class.model_fields[key])}"
    hint = ""
    for member in members(config_class.model_fields[key].annotation):
        if get_origin(member) is Literal:
            hint = suggestion(str(setting.value), get_args(member))
    return AfzalError(f"{key} cannot be {yaml_text(setting.value)}; {expected}{hint}", where=setting.where)


def _nested_class(field: FieldInfo | None) -> type[BaseModel] | None:
    """The settings class that a field holds; None for a plain value."""
    kinds = members(field.annotation) if field is not None else ()
    return next((m for m in kinds if isinstance(m, type) and issubclass(m, BaseModel)), None)


def _nested_message(config_class: type[BaseModel], loc: Sequence[Any], detail: Any, path: str, message: str) -> str:
    """Say what is wrong inside the nested settings that ``path`` names."""
    if not loc:
        return f"{path}: {message}"
    key, field = str(loc[0]), config_class.model_fields.get(str(loc[0]))
    inner = _nested_class(field)
    if inner is not None and (len(loc) > 1 or message):
        return _nested_message(inner, loc[1:], detail, f"{path}: {key}", message)
    if detail["type"] == "missing":
        return f"{path}: the setting {key!r} is missing"
    if field is None:
        return f"{path}: unknown setting {key!r}{suggestion(key, config_class.model_fields)}"
    return f"{path}: {key} cannot be {yaml_text(detail['input'])}; {message or f'wanted: {_allowed_values(field)}'}"


_SHOWN = 10


def join_errors(errors: Sequence[AfzalError]) -> AfzalError:
    """Several errors joined into one."""
    if len(errors) == 1:
        return errors[0]
    lines = [f"  {line}" for error in errors[:_SHOWN] for line in str(error).splitlines()]
    more = (
        [f"  and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
    )  # many: probably a file for another command
    return AfzalError("\n".join([f"{len(errors)} settings are wrong:", *lines, *more]))


def yaml_text(value: Any) -> str:
    """A value as it is written in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOUNDS = (("ge", "of at least"), ("gt", "greater than"), ("le", "up to"), ("lt", "below"))


def _allowed_values(field: FieldInfo) -> str:
    """The values that a field takes, in words: ``a whole number of at least 1, or null``."""
    types = members(field.annotation)
    phrases = [_word(m) for m in sorted(types - {type(None)}, key=str)]
    bounds = [
        f"{phrase} {bound:g}"
        for name, phrase in _BOUNDS
        for m in field.metadata
        if (bound := getattr(m, name, None)) is not None
    ]
    if any(getattr(m, "pattern", None) for m in field.metadata):
        return f"{field.description}".rstrip(".")
    or_null = ["or null"] if type(None) in types else []
    return " ".join([" or ".join(phrases), " and ".join(bounds), *or_null]).replace("  ", " ").strip()


def _word(member: Any) -> str:
    if get_origin(member) is Literal:
        return f"one of {', '.join(get_args(member))}"
    if get_origin(member) is dict:
        return "pairs such as key=value,key=value"
    if get_origin(member) is list:
        return "names such as q_proj,v_proj"
    if isinstance(member, type) and issubclass(member, BaseModel):
        return "nested settings, such as {kind: ...}" if "kind" in member.model_fields else "nested settings"
    return _WORDS[member]
