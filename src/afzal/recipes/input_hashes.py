"""Content hashes of what settings name outside the run: user functions, models and other files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from afzal.config import PEOPLE, REFERENCES, Settings
from afzal.errors import AfzalError
from afzal.hashes import parts_of
from afzal.judging.rewards import named_in
from afzal.runs import Run

# Settings that may name something outside the run, whose content is hashed. Data has a separate fingerprint.
NAMES = (
    *("model", "adapter_from", "reference", "value_model", "reward", "watch_reward", "cost"),
    *("objective", "chat_template", "eval_data", "samples"),
    *("held_out_prompts", "constraint", "constraint_data", "constraint_score"),
    "generator",
)
_REWARDS = ("reward", "watch_reward", "cost")
_WORDS = (PEOPLE, *REFERENCES, "initial", "previous")
Inputs = Mapping[str, str | Mapping[str, str]]
"""By setting: the hash of the file that it names, or one hash per part."""
# Settings that change no numbers: where a run is, how its model is cut, when it saves, and who is notified
_FREE = (
    "tensor_parallel",
    *("out", "push_to_hub", "hub_public", "save_every_steps", "save_every_minutes", "keep_checkpoints"),
    "report_to",
)


def input_hashes(config: Settings) -> dict[str, str | dict[str, str]]:
    """Hashes of what the settings name outside the run: models, function code, held-out data, templates."""
    hashes: dict[str, str | dict[str, str]] = {}
    for key in NAMES:
        value = getattr(config, key, None)
        if not isinstance(value, str) or value in _WORDS:
            continue
        # an objective may be a sum, as 0.8*dpo + 0.2*mine.py:loss
        terms = [term.rpartition("*")[2].strip() for term in value.split("+")] if key == "objective" else [value]
        terms += named_in(value) if key in _REWARDS else []
        several = [parts_of(term) for term in terms]
        parts = {name: part for term in several for name, part in term.items()}
        if len(parts) < sum(map(len, several)):  # several terms have parts with the same name
            pairs = zip(terms, several, strict=True)
            parts = {f"{term} {name}".strip(): part for term, term_parts in pairs for name, part in term_parts.items()}
        if parts:
            hashes[key] = parts[""] if parts.keys() == {""} else parts
    return hashes


def refuse_changes(
    run: Run,
    config: Mapping[str, Any],
    files: Inputs,
    data: Mapping[str, tuple[str, str]],
    other_changes: Iterable[str] = (),
) -> None:
    """Refuse to resume a run if settings, data, or the content that settings name have changed.

    What a setting names may have moved, if its content is the same.

    Args:
        files: from :func:`input_hashes`.
        data: by key in the data part of ``run.json``: its name for messages, and its current hash.
        other_changes: descriptions of other changes.

    Raises:
        AfzalError: something differs from the start of the run in ``run.json``; lists the changes.
    """
    facts = run.facts()
    before, hashes, data_before = facts.get("config", {}), facts.get("files", {}), facts.get("data", {})
    unchanged = {key for key, current in files.items() if hashes.get(key) == current}
    if data_before.get("fingerprint") == data["fingerprint"][1]:
        unchanged |= {"data", "prompts"}
    free = {*_FREE, *unchanged}
    changed = [f"{k}: {before[k]!r} -> {v!r}" for k, v in config.items() if k not in free and before.get(k, v) != v]
    changed += [
        f"{what} has changed" for key, (what, current) in data.items() if data_before.get(key) not in (None, current)
    ]
    for key, current in files.items():
        changed += _differences(key, hashes.get(key), current)
    changed += other_changes
    if changed:
        raise AfzalError(
            f"{run.path} cannot be resumed with other settings",
            why="; ".join(changed),
            remedy="restore what changed (run.yaml has the settings), or start a new run with another --out",
        )


def _differences(key: str, before: str | Mapping[str, str] | None, after: str | Mapping[str, str]) -> list[str]:
    """The changes in what a setting names; empty if its content was never recorded."""
    if before is None or before == after:
        return []
    if isinstance(before, str) and isinstance(after, Mapping):
        before = {**after, "": before}  # versions that did not follow imports wrote it like this
    if isinstance(before, str) or isinstance(after, str):
        return [f"{key}: the content of its file has changed"]
    changed = (name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name))
    describe = lambda name: "is new" if name not in before else "is gone" if name not in after else "has changed"  # noqa: E731
    return [f"{key}: {name or 'its file'} {describe(name)}" for name in changed]
