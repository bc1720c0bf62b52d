"""The commands that make sense after a run, derived from its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal.config import VIRTUAL, method_in
from afzal.health import Diagnosis, alarms
from afzal.runs import start_in
from afzal.terminal.conclusion import Step, step
from afzal.text import setting


def next_steps(
    path: str, facts: Mapping[str, Any], diagnoses: Sequence[Diagnosis], audit: Mapping[str, Any] | None = None
) -> list[Step]:
    """The next commands, the most important one first: resume a run, repeat it with a fix, or judge and use the model.

    Args:
        path: the run folder.
        diagnoses: alarms first, as :func:`~afzal.health.diagnose` returns them.
        audit: counts of the data, from ``data.json``.
    """
    verb = "iterate" if "rounds" in _config(facts) else "train"
    if facts.get("status") in ("stopped", "running", "failed", "waiting"):
        return [step(verb, path, "--resume")]
    raised = alarms(diagnoses)
    change = next((d.change for d in raised if d.change), {})
    if change:
        changed = [f"{k}={setting(v) if isinstance(v, float) else v}" for k, v in change.items()]
        return [step(verb, f"{path}/run.yaml", *changed, f"out={path}-2", why="the same run with this change")]
    if any(d.severity == "bad" for d in raised):
        return [step("report", path, "--open")]
    if verb == "iterate":
        return _after_rounds(path, facts)
    return _after_training(path, facts, audit or {})


def _after_rounds(path: str, facts: Mapping[str, Any]) -> list[Step]:
    """Try the policy that the rounds recommend; if that is their start, show why."""
    best, start = str(facts.get("best") or ""), start_in(facts)
    if not best or best == start:
        return [step("report", path, "--open", why="why no round is better")]
    held_out, data = str(_config(facts).get("held_out_prompts") or ""), facts.get("data")
    if isinstance(data, Mapping) and data.get("media"):
        if not held_out:
            return [step("report", path, "--open", why="answers before and after")]
        return _media_comparison_steps(best, start, held_out, has_samples=False)
    return _comparison_steps(best, start, held_out, name_start=True)


def _after_training(path: str, facts: Mapping[str, Any], audit: Mapping[str, Any]) -> list[Step]:
    method, config, start = method_in(facts), _config(facts), start_in(facts)
    data = facts.get("data")
    data = data if isinstance(data, Mapping) else {}
    source = str(data.get("source") or "")
    is_preference = audit.get("pairs") != 0 and not (method is not None and method.online)
    steps: list[Step] = []
    if method is not None and method.next is not None and source and is_preference:
        steps.append(step(*method.next(path, source)[1:], *_data_flags(config, method.writes)))
    if method is not None and not method.writes:
        training = [step("train", "rloo", "--model", start, "--data", source, "--reward", path, why="learn from it")]
        return [*steps, *(training if start and source else [])]
    held_out = str(config.get("eval_data") or "")
    if start and data.get("media"):
        steps += _media_comparison_steps(path, start, held_out, has_samples=bool(data.get("eval")))
    elif start:
        steps += _comparison_steps(path, start, held_out, name_start=not Path(start).is_dir())
    else:
        steps.append(step("generate", "--model", path, "--prompt", "How are you?"))
    if config.get("adapter") and config["adapter"] not in VIRTUAL:
        steps.append(step("export", path, "--out", f"{path}-merged", why="a model without an adapter"))
    return steps[:3]


def _comparison_steps(path: str, start: str, held_out: str, *, name_start: bool) -> list[Step]:
    """Ways to find out without a reward: blind votes in a chat, and people or a judge on held-out prompts.

    Args:
        name_start: whether the chat needs the name of the model's start.
    """
    against = ["--against", start] if name_start else []
    steps = [step("chat", path, *against, "--blind", why="is it better? vote blind")]
    if held_out:
        flags = ["--against", start, "--prompts", held_out]
        steps.append(step("judge", path, *flags, why="the same on held-out prompts, for several people"))
    return steps


def _media_comparison_steps(path: str, start: str, held_out: str, *, has_samples: bool) -> list[Step]:
    """Votes on answers to held-out prompts, or to those of the samples, whose images and sounds are in the run folder:
    a chat takes only text."""
    prompts = held_out or (f"{path}/samples.jsonl" if has_samples else "")
    if not prompts:
        return [step("report", path, "--open", why="nothing was held out to judge it by")]
    flags = ["--against", start, "--prompts", prompts]
    return [step("judge", path, *flags, why="is it better? vote blind")]


def _data_flags(config: Mapping[str, Any], writes: bool) -> list[str]:
    """The flags with which the run read its data, for another run on the same file."""
    columns = config.get("columns") or {}
    flags = {"columns": ",".join(f"{k}={v}" for k, v in columns.items()), "data-format": config.get("data_format")}
    if writes:
        flags |= {"axis": config.get("axis"), "eos-token": config.get("eos_token")}
    return [word for key, value in flags.items() if value for word in (f"--{key}", str(value))]


def _config(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    config = facts.get("config")
    return config if isinstance(config, Mapping) else {}
