"""Read YAML, ``key=value`` and Python values into a checked configuration, and write it back as YAML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from afzal.errors import AfzalError, did_you_mean

from .base import Settings, members
from .error_messages import Setting, join_errors, suggestion, unknown_setting_error, validation_error
from .methods import CONFIGS, METHODS
from .training import TrainConfig


def load(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a YAML file, with ``key=value`` overrides on top.

    Raises:
        AfzalError: the file does not parse, or a key or value is wrong; names ``file:line`` and the remedy.
    """
    return resolve(_with_overrides(path, overrides))


def of_file(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """An object of ``kind`` from a YAML file, with ``key=value`` overrides on top.

    Raises:
        AfzalError: as for :func:`load`.
    """
    return build(kind, _with_overrides(path, overrides))


def _with_overrides(path: str | Path, overrides: Sequence[str]) -> list[Setting]:
    return [*read_file(path), *map(read_override, overrides)]


def make(method: str, **settings: Any) -> TrainConfig:
    """The configuration of a method from Python values, with the same checks and messages as a file."""
    return resolve([Setting("method", method), *(Setting(k, v) for k, v in settings.items())])


def dump(config: Settings) -> str:
    """The resolved settings as YAML that :func:`load` reads back to an equal object."""
    values = config.model_dump(mode="json", by_alias=True)
    method = {"method": values.pop("method")} if "method" in values else {}
    return yaml.safe_dump(method | values, sort_keys=False, allow_unicode=True)


def resolve(settings: Sequence[Setting]) -> TrainConfig:
    """Settings in order of precedence (the last of a key wins), as the class of their method."""
    return build(CONFIGS[method_of(settings)], settings)


def method_of(settings: Sequence[Setting]) -> str:
    """The method that the settings name.

    Raises:
        AfzalError: they name none, or an unknown one.
    """
    chosen = next((s for s in reversed(settings) if s.key == "method"), None)
    if chosen is None:
        where = settings[0].where.rpartition(":")[0] if settings else ""
        remedy = f"add `method: dpo` (or {', '.join(m for m in METHODS if m != 'dpo')})"
        raise AfzalError("the setting 'method' is missing", where=where, remedy=remedy)
    if chosen.value not in CONFIGS:
        raise AfzalError(
            f"unknown method {chosen.value!r}{suggestion(str(chosen.value), METHODS)}",
            where=chosen.where,
            remedy=f"choose one of {', '.join(METHODS)}",
        )
    return chosen.value


C = TypeVar("C", bound=Settings)


def build(kind: type[C], settings: Sequence[Setting]) -> C:
    """An object of ``kind`` from settings; the last value of a key wins.

    Raises:
        AfzalError: an unknown key, or invalid values.
    """
    if "activation_checkpointing" in kind.model_fields:
        settings = [_translate_checkpointing(s) for s in settings]
    latest = {s.key: s for s in settings}
    errors = [unknown_setting_error(kind, s, latest) for s in latest.values() if s.key not in kind.model_fields]
    if errors:
        raise join_errors(errors)
    values = {key: _convert(kind.model_fields[key], s) for key, s in latest.items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise validation_error(kind, error, latest) from None


# The switch of other trainers as a choice of activation_checkpointing
_SWITCH = {"true": "full", "false": "none", "null": "auto", "none": "auto"}


def _translate_checkpointing(setting: Setting) -> Setting:
    """Translate ``gradient_checkpointing``, known from transformers' Trainer, into ``activation_checkpointing``.

    Raises:
        AfzalError: its value is neither true nor false.
    """
    if setting.key != "gradient_checkpointing":
        return setting
    value = _SWITCH.get(str(setting.value).lower())
    if value is None:
        raise AfzalError(
            f"gradient_checkpointing cannot be {setting.value!r}; wanted: true or false",
            where=setting.where,
            remedy="activation_checkpointing=selective, or one of none, full, auto",
        )
    return replace(setting, key="activation_checkpointing", value=value)


def stated(folder: str | Path) -> dict[str, Any]:
    """The settings in the ``run.yaml`` of a run folder; empty if ``folder`` holds no run.

    Raises:
        AfzalError: the file cannot be read.
    """
    path = Path(folder) / "run.yaml"
    return {s.key: s.value for s in read_file(path)} if path.is_file() else {}


def read_file(path: str | Path) -> list[Setting]:
    """The settings of a YAML file, each with its line."""
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            remedy = "give a YAML file of settings, such as a run's run.yaml"
            raise AfzalError(f"is larger than {_MAX_BYTES // 2**20} MiB", where=str(path), remedy=remedy)
        text = data.decode("utf-8")
    except OSError as error:
        remedy = did_you_mean(path) or "give the path of a YAML file"
        raise AfzalError(f"cannot read the configuration: {error.strerror}", where=str(path), remedy=remedy) from None
    except UnicodeDecodeError as error:
        raise AfzalError(f"byte {error.start} is not UTF-8", where=str(path), remedy="save it as UTF-8") from None
    try:
        return _settings_of(text, str(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "context_mark", None) or getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise AfzalError(f"not valid YAML: {problem}", where=where, remedy="write one `key: value` per line") from None


def read_override(text: str, where: str = "command line") -> Setting:
    """A ``key=value`` of the command line."""
    key, sign, value = text.partition("=")
    if not sign:
        raise AfzalError(f"{text!r} is not a setting", where=where, remedy="write key=value, such as beta=0.2")
    return Setting(key.strip().replace("-", "_"), value.strip(), where, typed=True)


_MAX_BYTES = 2**20
_MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """YAML's safe loader for settings.

    It reads 1e-6 as a number, which YAML 1.1 does not. It refuses deep nesting, and aliases, by which a few lines can
    expand to more values than any machine holds. A value that cannot be constructed is reported as invalid YAML.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node; aliases and deep nesting are refused."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "aliases are not read; write the value out", mark)
        if self._depth >= _MAX_DEPTH:
            raise ComposerError(None, None, f"nested more than {_MAX_DEPTH} deep", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A value; impossible dates and overlong numbers are reported as invalid YAML."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise ConstructorError(None, None, str(error), node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _yaml_value(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _settings_of(text: str, path: str) -> list[Setting]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise AfzalError("no settings found", where=path, remedy="write one `key: value` per line")
        settings: dict[str, Setting] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True)).replace("-", "_")
            where = f"{path}:{key_node.start_mark.line + 1}"
            if key in settings:
                why = f"also at {settings[key].where}"
                raise AfzalError(f"the setting {key!r} is given twice", where=where, why=why, remedy="keep one of them")
            settings[key] = Setting(key, loader.construct_object(value_node, deep=True), where)
        return list(settings.values())
    finally:
        loader.dispose()


def _convert(field: FieldInfo, setting: Setting) -> Any:
    """The value of a setting; text from a command line is converted to the field's type."""
    if not setting.typed or not isinstance(setting.value, str):
        return setting.value
    kinds = members(field.annotation)
    if any(get_origin(k) is Literal and setting.value in get_args(k) for k in kinds):
        return setting.value  # if `none` is one of the choices, it does not mean a missing value
    if type(None) in kinds and setting.value.lower() in ("null", "none", "~"):
        return None
    if str in kinds or any(get_origin(k) is Literal for k in kinds):
        return setting.value
    try:
        return _yaml_value(setting.value)
    except yaml.YAMLError:
        return setting.value
