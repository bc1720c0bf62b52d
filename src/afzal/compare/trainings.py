"""The trainings of a comparison, and whether each is trained, resumed or reused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from afzal import runs
from afzal.config import (
    CONFIGS,
    START,
    CompareConfig,
    Entry,
    IterateConfig,
    Setting,
    TrainConfig,
    build,
    entries,
    ordered,
    resolve,
    substituted,
)
from afzal.errors import AfzalError
from afzal.hashes import content_hash
from afzal.iterate.run import iterate
from afzal.prepare import prepare
from afzal.recipes.input_hashes import input_hashes
from afzal.recipes.online import planned
from afzal.recipes.setup import steps_of
from afzal.recipes.train import train
from afzal.runs import lock
from afzal.train.feed import Feed, Layout

State = Literal["trained", "resumed", "reused", "given"]
Say = Callable[[str], None]
Settings = TrainConfig | IterateConfig


class RunMismatch(AfzalError):  # noqa: N818 - a state of a folder
    """An existing run was made with other settings or from other inputs; nothing was overwritten."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One entry with one seed. ``folder`` holds its run; ``config`` is None for a run that existed before."""

    entry: Entry
    seed: int
    folder: Path
    config: Settings | None

    @property
    def name(self) -> str:
        """The entry's name and the seed; the folder has the same name."""
        return f"{self.entry.name}-{self.seed}"

    @property
    def in_rounds(self) -> bool:
        """Whether it is a run of rounds rather than one training."""
        return self.entry.kind == "iterate"


def stages_of(config: CompareConfig) -> list[Stage]:
    """Every training and every given run of a comparison, each after those it needs; best-of-n trains nothing.

    Raises:
        AfzalError: an entry's settings are wrong, or ``common`` has one that no entry knows.
    """
    stages: list[Stage] = []
    used: set[str] = set()
    for entry in ordered(entries(config)):
        if entry.kind == "best_of":
            continue
        several = entry.kind != "run" or "{seed}" in entry.value
        for seed in config.seeds if several else config.seeds[:1]:
            stage = _stage(config, entry, seed)
            used |= config.common.keys() & (stage.config.model_fields_set if stage.config else set())
            stages.append(stage)
    if unknown := config.common.keys() - used:
        raise AfzalError(f"common: {min(unknown)!r} has no effect on any entry of methods", remedy="leave it out")
    return stages


def folder_of(config: CompareConfig, name: str, seed: int) -> Path:
    """The run folder of an entry."""
    entry = next(e for e in entries(config) if e.name == name)
    if entry.kind == "run":
        return Path(entry.value.replace("{seed}", str(seed)))
    return Path(config.out) / "runs" / f"{name}-{seed}"


def folders(config: CompareConfig, seed: int) -> dict[str, str]:
    """The values of ``${name}`` for every entry with a folder; ``${start}`` is the start model."""
    names = [e.name for e in entries(config) if e.kind != "best_of"]
    return {START: config.model, **{name: str(folder_of(config, name, seed)) for name in names}}


def _stage(config: CompareConfig, entry: Entry, seed: int) -> Stage:
    folder = folder_of(config, entry.name, seed)
    if entry.kind == "run":
        return Stage(entry, seed, folder, None)
    where = f"methods, {entry.name}"
    in_rounds = entry.kind == "iterate"
    known = (IterateConfig if in_rounds else CONFIGS[entry.value]).model_fields
    chosen: dict[str, Any] = {"model": config.model, "device": config.device}
    if config.data is not None:
        chosen["prompts" if in_rounds else "data"] = config.data
    if in_rounds:
        chosen["max_new_tokens"] = config.sample_tokens
    chosen |= {k: v for k, v in config.common.items() if k in known} | dict(entry.settings)
    fixed = {"objective" if in_rounds else "method": entry.value, "seed": seed, "out": str(folder)}
    values = [Setting(k, v, where) for k, v in (substituted(chosen, folders(config, seed)) | fixed).items()]
    return Stage(entry, seed, folder, build(IterateConfig, values) if in_rounds else resolve(values))


def ensure(stage: Stage, config: CompareConfig, say: Say) -> State:
    """Make sure that a stage is finished: train it, resume it, or reuse it if settings and inputs are the same.

    Raises:
        AfzalError: the training fails; :class:`RunMismatch` if its folder holds a run with other settings or from
            other inputs (named in the error), or a run that this comparison did not make.
    """
    if stage.config is None:
        return check_given_run(stage)
    settings, record = _run_record(stage, stage.config, config)
    ledger = ledger_of(config, stage.entry.name, stage.seed)
    if (stage.folder / "run.json").exists():
        _refuse_other(stage, ledger, record)
        if runs.open_run(stage.folder).status() == "finished":
            return "reused"
    resume = (stage.folder / "run.json").exists()
    if not resume:
        _clear_unstarted(stage.folder)
    say(f"{stage.name}: {'resuming' if resume else 'training'}")
    before = runs.read_json(ledger).get("seconds", 0.0) if resume else 0.0
    _write_ledger(ledger, {**record, "seconds": before})
    start_time = time.perf_counter()
    try:
        if stage.in_rounds:
            run = iterate(cast(IterateConfig, settings), resume=resume)
        else:
            run = train(cast(TrainConfig, settings), resume=resume)
    finally:
        _write_ledger(ledger, {**record, "seconds": round(before + time.perf_counter() - start_time, 3)})
    if (status := runs.open_run(run).status()) != "finished":
        raise AfzalError(f"{run} is {status}", remedy="provide what it waits for, then run the same command again")
    return "resumed" if resume else "trained"


def refuse_other(stage: Stage, config: CompareConfig) -> None:
    """Check that a run in the stage's folder was made with its settings and from its inputs.

    Raises:
        RunMismatch: it was not; the error names the differences.
    """
    if stage.config is not None and (stage.folder / "run.json").exists():
        record = _run_record(stage, stage.config, config)[1]
        _refuse_other(stage, ledger_of(config, stage.entry.name, stage.seed), record)


def check_given_run(stage: Stage) -> State:
    """Check a run that existed before the comparison.

    Raises:
        AfzalError: it does not exist.
    """
    if not stage.folder.is_dir():
        raise AfzalError(
            f"there is no run {stage.folder}",
            where=f"methods, {stage.entry.name}",
            remedy="give the folder of a finished run, or the settings to train one",
        )
    return "given"


def ledger_of(config: CompareConfig, name: str, seed: int) -> Path:
    """The file with a run's settings, input hashes and training time in seconds."""
    return Path(config.out) / "stages" / f"{name}-{seed}.json"


def _clear_unstarted(folder: Path) -> None:
    """Remove the settings of a run that was killed before its first facts were written; nothing was trained."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {lock.NAME} == {"run.yaml"}:
        (folder / "run.yaml").unlink()


def _write_ledger(ledger: Path, body: Mapping[str, Any]) -> None:
    ledger.parent.mkdir(parents=True, exist_ok=True)
    runs.atomic_write(ledger, json.dumps(body, indent=1) + "\n")


def with_snapshots(settings: TrainConfig, config: CompareConfig) -> TrainConfig:
    """The settings with checkpoints at ``config.snapshots`` evenly spaced steps, the last of which is the end.

    The spacing is that of the first seed, so that all seeds are measured at the same steps.
    """
    if settings.policy is None:
        return settings
    prepared = prepare(settings.model_copy(update={"seed": config.seeds[0]}))
    if settings.rollouts is not None:
        steps = steps_of(settings, planned(settings.rollouts, prepared))
    else:
        layout = Layout("shared", settings.pass_tokens)
        steps = steps_of(settings, Feed(prepared.train, (), settings.batch_size, settings.seed, layout))
    save_every = -(-steps // config.snapshots)
    return settings.model_copy(update={"save_every_steps": save_every, "keep_checkpoints": config.snapshots + 1})


def _run_record(stage: Stage, settings: Settings, config: CompareConfig) -> tuple[Settings, dict[str, Any]]:
    """The settings with their snapshots, and the record of a run made from them."""
    final = settings if stage.in_rounds else with_snapshots(cast(TrainConfig, settings), config)
    return final, {"settings": _recorded_settings(final), "inputs": _inputs(final)}


def _recorded_settings(settings: Settings) -> dict[str, Any]:
    free = ("out", "save_every_minutes", "report_to")
    return {k: v for k, v in settings.model_dump(mode="json").items() if k not in free}


def _inputs(settings: Settings) -> dict[str, Any]:
    """Content hashes of everything that the settings name."""
    data = {key: getattr(settings, key, None) for key in ("data", "prompts")}
    return {key: content_hash(value) for key, value in data.items() if value is not None} | input_hashes(settings)


def _refuse_other(stage: Stage, ledger: Path, record: Mapping[str, Any]) -> None:
    if not ledger.exists():
        raise RunMismatch(
            f"{stage.folder} holds a run that this comparison did not make",
            remedy=f"choose another out=, or name it as an entry {{name: ..., run: {stage.folder}}}",
        )
    before = runs.read_json(ledger)
    changed = [*_changes(before["settings"], record["settings"])]
    changed += [f"the content of {k} has changed" for k, v in record["inputs"].items() if before["inputs"].get(k) != v]
    if changed:
        raise RunMismatch(
            f"{stage.folder} cannot be reused: its settings or inputs differ",
            why="; ".join(changed),
            remedy=f"restore that, delete {stage.folder} to train it again, or choose another out=",
        )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
