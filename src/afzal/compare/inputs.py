"""Check of a comparison's inputs before anything is trained, so that hours of training do not end at a missing file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from afzal import data
from afzal.compare.measure import open_finished, read_prompts
from afzal.compare.server_answers import generator_of
from afzal.compare.trainings import Stage, check_given_run
from afzal.config import PEOPLE, REFERENCES, CompareConfig, entries, variables
from afzal.errors import AfzalError
from afzal.generate import Sampling, prompt_ids
from afzal.generate.with_server import ServerQuery, refuse_unsupported
from afzal.judging.judges import resolve_judge
from afzal.model.load import context_tokens
from afzal.model.reward import refuse_language_model
from afzal.model.speakers import open_speaker
from afzal.objectives import names_function
from afzal.rewards.functions import CONTRACT, own_function
from afzal.servers.client import key_from

_DATA = ("data", "prompts", "eval_data", "held_out_prompts", "constraint_data")
_MODELS = ("model", "reference", "value_model")
_REWARDS = ("reward", "watch_reward", "cost")
_WORDS = (*REFERENCES, PEOPLE, "initial", "previous")  # values that do not name a folder


def open_inputs(config: CompareConfig, stages: Sequence[Stage]) -> None:
    """Check that every file, folder and function that a comparison names can be read; loads no weights.

    Outputs of the comparison's own trainings are not checked.

    Raises:
        AfzalError: an input cannot be read; the error names it.
    """
    speaker = open_speaker(config.model, eos_token=config.eos_token)
    items, trees, _ = read_prompts(config, speaker)
    if (generator := generator_of(config)) is not None:
        sampling = Sampling(config.sample_tokens, config.temperature)
        prompts, ids = [item.prompt for item in items], [prompt_ids(tree) for tree in trees]
        refuse_unsupported(generator, ServerQuery(prompts, config.samples, sampling, 0, speaker, ids))
    for stage in stages:
        if stage.config is None:
            check_given_run(stage)
            if (stage.folder / "run.json").exists():
                open_finished(stage.folder)
    made_here = [str(stage.folder) for stage in stages if stage.config is not None]
    best_of = [e.settings["reward"] for e in entries(config) if e.kind == "best_of" and "reward" in e.settings]
    rewards = {spec: "rewards" for spec in [*config.rewards.values(), *best_of] if not variables(spec)}
    models: dict[str, None] = {}
    for stage in stages:
        if stage.config is not None:
            rewards |= {spec: key for key, spec in _settings_that_name(stage.config, _REWARDS, made_here)}
            models |= dict.fromkeys(name for _, name in _settings_that_name(stage.config, _MODELS, made_here))
    for spec, key in rewards.items():
        _open_reward(spec, key)
    for name in models:
        context_tokens(name)
    for name, spec in config.judges.items():
        _open_judge(name, spec)
    _open_data(stages, made_here)


def _settings_that_name(settings: Any, keys: Iterable[str], made_here: Sequence[str]) -> Iterable[tuple[str, str]]:
    """(setting, value) of the settings that name inputs existing before the comparison."""
    for key in keys:
        value = getattr(settings, key, None)
        if isinstance(value, str) and value not in _WORDS and not _below(value, made_here):
            yield key, value


def _below(value: str, folders: Sequence[str]) -> bool:
    return any(Path(value) == Path(folder) or Path(folder) in Path(value).parents for folder in folders)


def _open_reward(spec: str, key: str) -> None:
    if names_function(spec):
        own_function(spec, key, CONTRACT)
    else:
        refuse_language_model(spec, key)


def _open_judge(name: str, spec: str) -> None:
    """Check that a judge's files exist and that a server's key is known."""
    try:
        settings = resolve_judge(spec).settings
    except AfzalError as error:
        raise AfzalError(error.what, where=f"judges: {name}", why=error.why, remedy=error.remedy) from error
    if settings is not None and settings.kind == "http":
        key_from(settings.key_env)


def _open_data(stages: Sequence[Stage], made_here: Sequence[str]) -> None:
    """Read every data source once for each way of reading it."""
    done = set()
    for stage in stages:
        settings: Any = stage.config
        for key, source in _settings_that_name(settings, _DATA, made_here):
            plain = key in ("held_out_prompts", "constraint_data")
            columns = None if plain else getattr(settings, "columns", None)
            shape = None if plain else getattr(settings, "data_format", None)
            damaged = "drop" if getattr(settings, "skip_bad", False) else "raise"
            if (reading := (source, repr(columns), shape, damaged)) not in done:
                done.add(reading)
                data.read(source, columns=columns or None, format=shape, on_error=damaged)
