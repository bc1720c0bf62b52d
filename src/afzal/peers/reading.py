"""Recognise and translate a configuration file of another trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from afzal import config
from afzal.errors import AfzalError

from . import axolotl, llamafactory, trl
from .common import MIXTURE
from .translation import Remark, Translation

PEERS: dict[str, ModuleType] = {"trl": trl, "axolotl": axolotl, "llamafactory": llamafactory}
"""The trainers whose configurations are read, by the name that ``--peer`` takes."""


@dataclass(frozen=True, slots=True)
class Imported:
    """Settings translated from another trainer's configuration.

    Attributes:
        path: the other trainer's file.
        peer: the other trainer's name.
        settings: Afzal's settings, without those at their defaults.
        mixture: contents of the file of sources; None if there is a single data set.
        remarks: what became of every key.
    """

    path: str
    peer: str
    settings: Mapping[str, Any]
    mixture: Mapping[str, Any] | None
    remarks: tuple[Remark, ...]

    @property
    def complete(self) -> bool:
        """Whether no key that affects the training was lost, and no key is unknown."""
        return not any(remark.fate in ("lost", "unknown") for remark in self.remarks)

    def as_plain(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**asdict(self), "complete": self.complete}


def import_config(
    path: str | Path,
    *,
    peer: str | None = None,
    method: str | None = None,
    processes: int = 1,
    mixture: str = MIXTURE,
) -> Imported:
    """Translate a configuration of TRL, axolotl or LLaMA-Factory into equivalent Afzal settings.

    Args:
        path: a YAML or JSON file.
        peer: ``trl``, ``axolotl`` or ``llamafactory``; default: recognised by its keys.
        method: TRL's command, such as ``dpo``, if the file does not say it; likewise LLaMA-Factory's stage and
            axolotl's ``rl``.
        processes: number of processes (GPUs) of the other trainer, whose batches add up to one update.
        mixture: path of the file of sources, if there are several data sets.

    Raises:
        AfzalError: the file cannot be read or recognised, its method has no counterpart, or the resulting settings
            are invalid.
    """
    if processes < 1:
        raise AfzalError(
            f"processes cannot be {processes}",
            remedy="give the number of GPUs that the other trainer ran on: 1 or more",
        )
    path = Path(path)
    file_values = {s.key: s.value for s in config.read_file(path)}
    name = peer or detect_peer(file_values, path)
    if name not in PEERS:
        raise AfzalError(f"unknown trainer {name!r}", remedy=f"--peer {'|'.join(PEERS)}")
    t = Translation(PEERS[name].NAME, file_values, path=str(path))
    try:
        PEERS[name].translate(t, path, method=method, processes=processes)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        where, why = str(path), f"a value is not one that {t.peer} accepts: {error}"
        raise AfzalError(f"this is not a configuration of {t.peer}", where=where, why=why) from error
    t.close()
    if t.settings.get("data") == MIXTURE:
        t.settings["data"] = mixture
    settings, remarks = _without_defaults(t, path)
    return Imported(str(path), t.peer, settings, {"sources": t.sources} if t.sources else None, tuple(remarks))


def detect_peer(file_values: Mapping[str, Any], path: Path) -> str:
    """The trainer that a file's keys belong to.

    Raises:
        AfzalError: no trainer matches, the file is Afzal's own, or several match equally well.
    """
    if "method" in file_values and file_values["method"] in config.METHODS:
        raise AfzalError("these are settings of Afzal already", where=str(path), remedy=f"afzal train {path}")
    counts = {name: len(file_values.keys() & set(peer.IDENTIFYING_KEYS.split())) for name, peer in PEERS.items()}
    best = max(counts.values())
    candidates = [name for name, count in counts.items() if count == best]
    if best < 2 or len(candidates) > 1:
        names = " or ".join(PEERS[name].NAME for name in candidates) if best >= 2 else "TRL, axolotl or LLaMA-Factory"
        raise AfzalError(
            f"the file is not recognised as a configuration of {names}",
            where=str(path),
            why=f"its keys are {', '.join(list(file_values)[:8])}{' ...' if len(file_values) > 8 else ''}",
            remedy=f"--peer {'|'.join(PEERS)}",
        )
    return candidates[0]


def _without_defaults(t: Translation, path: Path) -> tuple[dict[str, Any], list[Remark]]:
    """The settings that must be written out, and the remarks without defaults that both trainers share."""
    method = str(t.settings["method"])
    kind = config.CONFIGS[method]
    fields = kind.model_fields
    defaults = {key: field.default for key, field in fields.items()}
    settings: dict[str, Any] = {"method": method}
    remarks: list[Remark] = []
    from_file = {remark.into for remark in t.remarks if remark.fate in ("carried", "changed")}
    for remark in t.remarks:
        is_shared = remark.fate == "default" and _equal_with_type(
            defaults.get(remark.into), t.settings.get(remark.into)
        )
        if remark.into and remark.into not in fields and remark.fate in ("carried", "changed", "default"):
            if remark.fate != "default":
                remarks.append(
                    replace(remark, fate="lost", into="", why=remark.why or f"{method} has no {remark.into}")
                )
        elif not is_shared or remark.into == "lr":
            remarks.append(remark)
    for key in fields:
        value = t.settings.get(key)
        if key in t.settings and (key in from_file or key == "lr" or not _equal_with_type(defaults[key], value)):
            settings[key] = value
    missing = [key for key, field in fields.items() if field.is_required() and key not in settings]
    if missing:
        what = f"the file names no {' and no '.join(missing)}"
        raise AfzalError(
            what, where=str(path), why=f"{method} needs it", remedy="add it to the file, under the other trainer's key"
        )
    config.make(**settings)
    return settings, remarks


def _equal_with_type(default: Any, value: Any) -> bool:
    return default == value and isinstance(default, bool) == isinstance(value, bool)
