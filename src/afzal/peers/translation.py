"""What becomes of every key of another trainer's configuration: a setting, a change of meaning, or nothing, and why."""

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
    "unknown": "not known: a newer or a misspelled key",
}


_SWITCH = {"true": True, "yes": True, "1": True, "on": True} | dict.fromkeys(("false", "no", "0", "off", ""), False)
_SHOWN = 60  # characters of a value in an error


@dataclass(frozen=True, slots=True)
class Remark:
    """What became of one key.

    Attributes:
        key: as the other trainer names it.
        value: as the file gives it; the other trainer's own default where the file does not.
        into: the setting of Afzal that holds it; "" where there is none.
        why: the reason, where one is needed.
    """

    fate: Fate
    key: str
    value: Any
    into: str = ""
    why: str = ""


@dataclass(slots=True)
class Translation:
    """A configuration on its way to Afzal's settings; every key is said something about, or it is unknown.

    Attributes:
        peer: name of the other trainer.
        given: its keys and values, as the file has them.
        settings: Afzal's settings so far.
        sources: the parts of a mixture, where there are several data sets.
        remarks: what became of the keys, in the order in which they were read.
        path: the other trainer's file, for errors.
    """

    peer: str
    given: Mapping[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    path: str = ""

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key; ``default`` where the file does not give it or says null."""
        found = self.given.get(key)
        return default if found is None else found

    def number(self, key: str, default: float = 0.0) -> float:
        """The number of a key, which may be written as text (YAML reads ``5e-5`` as text).

        Raises:
            AfzalError: the value is no finite number.
        """
        found = self.value(key, default)
        try:
            made = math.nan if isinstance(found, bool) else float(found)
        except (TypeError, ValueError):
            made = math.nan
        if not math.isfinite(made):
            raise self.wrong(key, "a number")
        return made

    def whole(self, key: str, default: int = 0) -> int:
        """As :meth:`number`, without a fraction."""
        made = self.number(key, default)
        if made != int(made):
            raise self.wrong(key, "a whole number")
        return int(made)

    def text(self, key: str, default: str = "") -> str:
        """The text of a key: a name, a path, or a number or a switch that is written as such.

        Raises:
            AfzalError: the value is a list or an object.
        """
        found = self.value(key, default)
        if isinstance(found, list | Mapping):
            raise self.wrong(key, "one value, not several")
        return str(found)

    def switch(self, key: str, default: bool = False) -> bool:
        """Whether a key is switched on, in one of YAML's words for it.

        Raises:
            AfzalError: the value is none of them.
        """
        word = str(self.value(key, default)).strip().lower()
        if word not in _SWITCH:
            raise self.wrong(key, "true or false")
        return _SWITCH[word]

    def entries(self, key: str) -> list[Any]:
        """The list of a key; empty where there is none.

        Raises:
            AfzalError: the value is no list.
        """
        found = self.value(key, [])
        if not isinstance(found, list):
            raise self.wrong(key, "a list")
        return found

    def inner(self, key: str) -> Mapping[str, Any]:
        """The object of a key; empty where there is none.

        Raises:
            AfzalError: the value is no object.
        """
        found = self.value(key, {})
        if not isinstance(found, Mapping):
            raise self.wrong(key, "keys with values")
        return found

    def wrong(self, key: str, wanted: str) -> AfzalError:
        """What to say of a value of another kind than its key takes."""
        shown = json.dumps(self.given.get(key), ensure_ascii=False, default=str)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        return AfzalError(
            f"{key} cannot be {shown}", where=self.path, remedy=f"write {wanted}, as {self.peer} takes it"
        )

    def has(self, key: str) -> bool:
        """Whether the file gives the key another value than null."""
        return self.given.get(key) is not None

    def put(self, into: str, value: Any, *keys: str, why: str = "", changed: bool = False) -> None:
        """Give a setting its value; ``keys`` are those of the other trainer that it comes from, of which any or none
        stand in the file."""
        self.settings[into] = value
        present = [key for key in keys if key in self.given]
        for key in present:
            self._say(Remark("changed" if changed else "carried", key, self.given[key], into, why))
        if keys and not present:
            self._say(Remark("default", keys[0], value, into, why))

    def change(self, key: str, why: str, into: str = "") -> None:
        """Say that a key does something else here, whatever was said about it before."""
        if key in self.given:
            self._say(Remark("changed", key, self.given[key], into, why))

    def note(self, key: str, why: str, into: str = "") -> None:
        """As :meth:`change`, of a key that nothing was said about."""
        if not self._is_said(key):
            self.change(key, why, into)

    def lose(self, key: str, why: str, off: Sequence[Any] = ()) -> None:
        """Say that a key has no counterpart, unless something was said about it; a switched off one does no harm.

        Args:
            off: further values that switch it off.
        """
        if key not in self.given or self._is_said(key):
            return
        value = self.given[key]
        if is_off(value) or value in off:
            self._say(Remark("idle", key, value, "", f"off, as here: {why}" if why else "off, as here"))
        else:
            self._say(Remark("lost", key, value, "", why))

    def idle(self, key: str, why: str) -> None:
        """Say that the training does not depend on a key, unless something was said about it."""
        if key in self.given and not self._is_said(key):
            self._say(Remark("idle", key, self.given[key], "", why))

    def idle_all(self, names: Mapping[str, str]) -> None:
        """The same of many: reasons, each with the names that it holds for, separated by spaces."""
        for why, keys in names.items():
            for key in keys.split():
                self.idle(key, why)

    def lose_all(self, names: Mapping[str, str]) -> None:
        """As :meth:`idle_all`, of keys that the training depends on."""
        for why, keys in names.items():
            for key in keys.split():
                self.lose(key, why)

    def close(self) -> None:
        """Say of every key that nothing was said about that it is not known."""
        for key, value in self.given.items():
            if self._is_said(key):
                continue
            if value is None:
                self._say(Remark("idle", key, None, "", "null: nothing is set"))
            else:
                self._say(Remark("unknown", key, value, "", f"not a key of {self.peer} that afzal import knows"))

    def of(self, *fates: Fate) -> list[Remark]:
        """The remarks of these kinds."""
        return [remark for remark in self.remarks if remark.fate in fates]

    def _say(self, remark: Remark) -> None:
        if remark not in self.remarks:
            self.remarks.append(remark)

    def _is_said(self, key: str) -> bool:
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
