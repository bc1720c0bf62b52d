"""The settings of a comparison of several methods, and the entries of its list of methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .base import split_names
from .error_messages import suggestion
from .measurement import MeasuringSettings
from .methods import METHODS

Kind = Literal["train", "iterate", "run", "best_of"]
KINDS: tuple[Kind, ...] = ("train", "iterate", "run", "best_of")
# Settings that the comparison decides itself, the same for all entries.
_RESERVED = ("out", "seed", "method", "save_every_steps", "keep_checkpoints")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
START = "start"


@dataclass(frozen=True, slots=True)
class Entry:
    """One method of a comparison.

    ``value`` is the method to train, the objective of rounds, the folder(s) of finished runs, or the values of n for
    best-of-n. ``settings`` are those of the method: in them ``${name}`` means the folder of another entry's run with
    the same seed, and ``${start}`` the start model.
    """

    name: str
    kind: Kind
    value: Any
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_policy(self) -> bool:
        """Whether it yields a policy to compare; a reward model is a stage for other entries."""
        return not (self.kind == "train" and not METHODS[self.value].writes)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the entries that must finish before this one."""
        return tuple(dict.fromkeys(name for name in variables(self.settings) if name != START))


def variables(value: Any) -> list[str]:
    """The names in every ``${name}`` of a text, or of the texts in a list or mapping."""
    if isinstance(value, str):
        return _VARIABLE.findall(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return [name for part in value for name in variables(part)] if isinstance(value, list | tuple) else []


def substituted(value: Any, values: Mapping[str, str]) -> Any:
    """The value with every ``${name}`` replaced by ``values[name]``."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: values[m[1]], value)
    if isinstance(value, Mapping):
        return {k: substituted(v, values) for k, v in value.items()}
    return [substituted(v, values) for v in value] if isinstance(value, list | tuple) else value


class CompareConfig(MeasuringSettings, frozen=True):
    """Several methods from one start model, on the same prompts, by the same rewards."""

    model: str = Field(description="The start model: a model folder, a run folder or a hub id. KL is measured to it.")
    data: str | None = Field(None, description="Training data of every entry that names none.")
    prompts: str = Field(description="Held-out prompts to answer, in any format that training data may have.")
    rewards: dict[str, str] = Field(
        description="Name -> source: module:function, file.py:function, a reward model's folder, or ${entry}. "
        "Methods are compared by the first, the true reward; the others are shown next to it."
    )
    judges: dict[str, str] = Field(
        {},
        description="Name -> a judge, as for afzal judge --judge: judge.yaml, a model folder, rule:longest, "
        "people:votes.jsonl. Each compares the answers of every two policies, the start included.",
    )
    judge_prompts: int | None = Field(
        None, ge=2, description="Prompts that the judges see, from the first on; default: all."
    )
    methods: list[dict[str, Any]] = Field(
        description="Entries {name, train: METHOD}, {name, iterate: OBJECTIVE}, {name, run: FOLDER} or "
        "{name, best_of: N}, each with the settings of its method."
    )
    common: dict[str, Any] = Field(
        {}, description="Settings of every entry whose method has them; the entry's own settings override them."
    )
    matched_kl: list[float] | None = Field(
        None,
        description="KLs in nats at which rewards are compared; default: a quarter, a half and all of the KL that "
        "half of the methods reach with every seed.",
    )
    kl_budget: float | None = Field(
        None, gt=0, description="Judge each method by its last snapshot within this KL, in nats, not by its last one."
    )
    resamples: int = Field(2000, ge=100, description="Bootstrap resamples of the prompts, for gains within a seed.")
    show_prompts: int = Field(6, ge=0, description="Prompts whose answers the page shows side by side.")
    tokens_per_forward: int = Field(8192, ge=2, description="Tokens per forward pass when answers are measured.")
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + answer, in tokens; longer is refused.")
    eos_token: str | None = Field(None, description="Token that ends an answer, if not the tokenizer's EOS.")
    generator: str | None = Field(
        None,
        description="YAML file of a server that writes the answers (see servers.md). It must serve the policy being "
        "measured: {policy} in model or reload. KL is still computed locally, on the tokens of its texts.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")
    out: str = Field("compare", description="Folder for the runs, the measurements and the report.")

    @field_validator("matched_kl", mode="before")
    @classmethod
    def _levels(cls, value: Any) -> Any:
        if value is None:
            return None
        try:
            kls = [float(part) for part in (value if isinstance(value, list) else split_names(str(value)))]
        except (TypeError, ValueError):
            raise ValueError("write it as [0.5, 1, 2], in nats") from None
        if not kls or min(kls) <= 0:
            raise ValueError("give at least one KL, each greater than 0")
        return sorted(set(kls))

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value or not all(isinstance(v, str) for v in value.values()):
            raise ValueError("write it as {name: file.py:function, another: ${entry}}")
        return {str(k): v for k, v in value.items()}

    @field_validator("judges", mode="before")
    @classmethod
    def _judges(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise ValueError("write it as {name: judge.yaml, another: rule:longest}")
        for name, spec in value.items():
            if not _NAME.fullmatch(str(name)):
                raise ValueError(f"a judge's name consists of letters, digits, '-', '_', '+' and '.', not {name!r}")
            if variables(spec):
                raise ValueError(
                    f"{spec!r}: a model that the comparison trains cannot be a judge in it; put it into rewards"
                )
        return {str(k): v for k, v in value.items()}

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
            raise ValueError("write a list of entries such as {name: dpo, train: dpo, beta: 0.1}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        all_entries = entries(self)
        by_name = {e.name: e for e in all_entries}
        if len(by_name) < len(all_entries):
            raise ValueError("methods: two entries have the same name")
        ordered(all_entries)
        for name in variables(self.rewards):
            if name not in by_name:
                raise ValueError(f"rewards: there is no entry {name!r} in methods{suggestion(name, by_name)}")
            if by_name[name].is_policy:
                raise ValueError(f"rewards: the entry {name!r} is not a reward model")
        if self.judge_prompts is not None and not self.judges:
            raise ValueError("judge_prompts has no effect: there are no judges")
        if next(iter(self.rewards)) in self.judges:
            raise ValueError("judges: a judge has the same name as the true reward")
        if not any(e.is_policy for e in by_name.values()):
            raise ValueError("methods: nothing to compare: all entries are reward models")
        if self.common and not any(e.kind in ("train", "iterate") for e in by_name.values()):
            raise ValueError("common has no effect: no entry of methods is trained")
        for key in self.common.keys() & set(_RESERVED):
            raise ValueError(f"common: {key!r} is set by the comparison itself")
        if self.generator is not None and "rows_per_batch" in self.model_fields_set:
            raise ValueError("rows_per_batch has no effect: the generator's server writes the answers")
        if self.snapshots != type(self).model_fields["snapshots"].default and all(
            e.kind == "best_of" for e in by_name.values()
        ):
            raise ValueError("snapshots has no effect: no entry of methods is trained")
        return self


def entries(config: CompareConfig) -> tuple[Entry, ...]:
    """The entries of a comparison in the order of its file."""
    return tuple(_entry(place, settings) for place, settings in enumerate(config.methods, 1))


def ordered(unordered: Sequence[Entry]) -> list[Entry]:
    """Sort entries so that each follows those it needs; otherwise keep their order.

    Raises:
        ValueError: an entry needs one that does not exist, or depends on itself.
    """
    by_name, placed = {e.name: e for e in unordered}, dict[str, Entry]()
    for entry in unordered:
        for name in entry.needs:
            if name not in by_name:
                raise ValueError(
                    f"methods: {entry.name} needs {name!r}, but there is no such entry{suggestion(name, by_name)}"
                )
            if by_name[name].kind == "best_of":
                raise ValueError(f"methods: {entry.name} needs {name!r}, which writes no folder to start from")
    while len(placed) < len(unordered):
        ready = [e for e in unordered if e.name not in placed and placed.keys() >= set(e.needs)]
        if not ready:
            names = ", ".join(e.name for e in unordered if e.name not in placed)
            raise ValueError(f"methods: these entries wait for each other: {names}")
        placed |= {e.name: e for e in ready[:1]}
    return list(placed.values())


def _entry(place: int, mapping: Mapping[str, Any]) -> Entry:
    """One entry of ``methods``, checked as far as possible without its method's settings."""
    where = f"entry {place} of methods"
    name = mapping.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where} needs a name made of letters, digits, '-', '_', '+' and '.', not {name!r}")
    if name == START:
        raise ValueError(f"{where} cannot be called {START}: that name means the start model")
    kinds: list[Kind] = [k for k in KINDS if k in mapping]
    if len(kinds) != 1:
        raise ValueError(
            f"{where} ({name}) needs exactly one of {', '.join(KINDS)}, but has {', '.join(kinds) or 'none'}"
        )
    kind, label = kinds[0], mapping.get("label", name)
    settings = {str(k).replace("-", "_"): v for k, v in mapping.items() if k not in ("name", "label", kind)}
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{where} ({name}): label must be a text")
    for key in settings.keys() & set(_RESERVED):
        raise ValueError(f"{where} ({name}): {key!r} is set by the comparison itself")
    return Entry(name, kind, _value(where, name, kind, mapping[kind], settings), label, settings)


def _value(where: str, name: str, kind: Kind, value: Any, settings: Mapping[str, Any]) -> Any:
    if kind == "iterate":
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where} ({name}): iterate must be the objective of the rounds, such as dpo")
        return value
    if kind == "train":
        if value not in METHODS:
            raise ValueError(f"{where} ({name}): unknown method {value!r}{suggestion(str(value), METHODS)}")
        return value
    allowed = {"reward"} if kind == "best_of" else set()
    for key in settings.keys() - allowed:
        raise ValueError(f"{where} ({name}): {key!r} has no effect on {kind}")
    if kind == "run":
        if not isinstance(value, str) or not value:
            raise ValueError(
                f"{where} ({name}): run must be a folder, with {{seed}} in its name if there is one per seed"
            )
        return value
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n > 1 for n in numbers):
        raise ValueError(f"{where} ({name}): best_of must be a whole number above 1, or a list of them")
    return tuple(sorted(set(numbers)))
