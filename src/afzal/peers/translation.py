"""Record what becomes of every key of another trainer's configuration, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from afzal.errors import AfzalError

Fate = Literal["carried", "changed", "default", "lost", "idle", "unknown"]

FATES: dict[Fate, str] = {
    "carried": "carried over",
    "changed": "changed in meaning",
    "default": "not in the file: the other trainer's default, which differs from Afzal's",
    "lost": "no counterpart, and the training may differ",
    "idle": "no counterpart, and the training does not depend on it",
    "unknown": "unknown: a newer or misspelled key",
}


_SWITCH = {"true": True, "yes": True, "1": True, "on": True} | dict.fromkeys(("false", "no", "0", "off", ""), False)
_SHOWN = 60  # characters of a value in an error


@dataclass(frozen=True, slots=True)
class Remark:
    """What became of one key.

    Attributes:
        key: the other trainer's name.
        value: the value in the file, or else the other trainer's default.
        into: Afzal's setting for it; "" if there is none.
        why: the reason, if one is needed.
    """

    fate: Fate
    key: str
    value: Any
    into: str = ""
    why: str = ""


@dataclass(slots=True)
class Translation:
    """The translation of a configuration in progress; every key gets a remark, or is unknown.

    Attributes:
        peer: name of the other trainer.
        file_values: its keys and values, as in the file.
        settings: Afzal's settings so far.
        sources: the parts of a mixture, if there are several data sets.
        remarks: what became of the keys, in reading order.
        path: the other trainer's file, for error messages.
    """

    peer: str
    file_values: Mapping[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    path: str = ""

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key; ``default`` if it is missing or null."""
        value = self.file_values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float = 0.0) -> float:
        """The value of a key as a number; it may be written as text (YAML reads ``5e-5`` as text).

        Raises:
            AfzalError: the value is not a finite number.
        """
        value = self.value(key, default)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(key, "a number")
        return number

    def integer(self, key: str, default: int = 0) -> int:
        """Like :meth:`number`, for whole numbers."""
        number = self.number(key, default)
        if number != int(number):
            raise self.wrong(key, "a whole number")
        return int(number)

    def text(self, key: str, default: str = "") -> str:
        """The value of a key as text: a name, a path, a number or a switch.

        Raises:
            AfzalError: the value is a list or a mapping.
        """
        value = self.value(key, default)
        if isinstance(value, list | Mapping):
            raise self.wrong(key, "one value, not several")
        return str(value)

    def switch(self, key: str, default: bool = False) -> bool:
        """Whether a key is switched on, by one of YAML's words for true.

        Raises:
            AfzalError: the value means neither true nor false.
        """
        word = str(self.value(key, default)).strip().lower()
        if word not in _SWITCH:
            raise self.wrong(key, "true or false")
        return _SWITCH[word]

    def entries(self, key: str) -> list[Any]:
        """The value of a key as a list; empty if it is missing.

        Raises:
            AfzalError: the value is not a list.
        """
        entries = self.value(key, [])
        if not isinstance(entries, list):
            raise self.wrong(key, "a list")
        return entries

    def inner(self, key: str) -> Mapping[str, Any]:
        """The value of a key as a mapping; empty if it is missing.

        Raises:
            AfzalError: the value is not a mapping.
        """
        mapping = self.value(key, {})
        if not isinstance(mapping, Mapping):
            raise self.wrong(key, "keys with values")
        return mapping

    def wrong(self, key: str, expected: str) -> AfzalError:
        """The error for a value of the wrong type."""
        written = json.dumps(self.file_values.get(key), ensure_ascii=False, default=str)
        written = written if len(written) <= _SHOWN else f"{written[:_SHOWN]}..."
        return AfzalError(
            f"{key} cannot be {written}", where=self.path, remedy=f"write {expected}, as {self.peer} expects"
        )

    def has(self, key: str) -> bool:
        """Whether the file gives the key a value other than null."""
        return self.file_values.get(key) is not None

    def put(self, into: str, value: Any, *keys: str, why: str = "", changed: bool = False) -> None:
        """Set a setting; ``keys`` are the other trainer's keys it comes from, any or none of which are in the file."""
        self.settings[into] = value
        present = [key for key in keys if key in self.file_values]
        for key in present:
            self._add(Remark("changed" if changed else "carried", key, self.file_values[key], into, why))
        if keys and not present:
            self._add(Remark("default", keys[0], value, into, why))

    def change(self, key: str, why: str, into: str = "") -> None:
        """Remark that a key has another meaning here, even if there already is a remark on it."""
        if key in self.file_values:
            self._add(Remark("changed", key, self.file_values[key], into, why))

    def note(self, key: str, why: str, into: str = "") -> None:
        """Like :meth:`change`, for a key without a remark."""
        if not self._has_remark(key):
            self.change(key, why, into)

    def lose(self, key: str, why: str, off: Sequence[Any] = ()) -> None:
        """Remark that a key has no counterpart, unless it has a remark; a switched-off key counts as idle.

        Args:
            off: further values that switch it off.
        """
        if key not in self.file_values or self._has_remark(key):
            return
        value = self.file_values[key]
        if is_off(value) or value in off:
            self._add(Remark("idle", key, value, "", f"off, as here: {why}" if why else "off, as here"))
        else:
            self._add(Remark("lost", key, value, "", why))

    def idle(self, key: str, why: str) -> None:
        """Remark that the training does not depend on a key, unless it has a remark."""
        if key in self.file_values and not self._has_remark(key):
            self._add(Remark("idle", key, self.file_values[key], "", why))

    def idle_all(self, names: Mapping[str, str]) -> None:
        """Like :meth:`idle` for many keys: reasons, each with its keys separated by spaces."""
        for why, keys in names.items():
            for key in keys.split():
                self.idle(key, why)

    def lose_all(self, names: Mapping[str, str]) -> None:
        """Like :meth:`idle_all`, for keys that the training depends on."""
        for why, keys in names.items():
            for key in keys.split():
                self.lose(key, why)

    def close(self) -> None:
        """Remark that every key without a remark is unknown."""
        for key, value in self.file_values.items():
            if self._has_remark(key):
                continue
            if value is None:
                self._add(Remark("idle", key, None, "", "null: nothing is set"))
            else:
                self._add(Remark("unknown", key, value, "", f"not a key of {self.peer} that afzal import knows"))

    def of(self, *fates: Fate) -> list[Remark]:
        """The remarks with one of these fates."""
        return [remark for remark in self.remarks if remark.fate in fates]

    def _add(self, remark: Remark) -> None:
        if remark not in self.remarks:
            self.remarks.append(remark)

    def _has_remark(self, key: str) -> bool:
        return any(remark.key == key for remark in self.remarks)


def is_off(value: Any) -> bool:
    """Whether a value switches a feature off."""
    return value is None or value is False or value in (0, "", "no", "none", "None", "false", "False", [], {})


def texts(value: Any) -> list[str]:
    """A list of names, from a list or from text with commas or spaces."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part for part in value.replace(",", " ").split() if part]
    return [str(part) for part in value] if isinstance(value, Iterable) else [str(value)]
