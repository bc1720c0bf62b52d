"""The commands that make sense after a run, from what its report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal.config import VIRTUAL, method_in
from afzal.health import Diagnosis, alarms
from afzal.runs import start_in
from afzal.terminal.closing import Step, step
from afzal.text import setting


def next_steps(
    path: str, facts: Mapping[str, Any], diagnoses: Sequence[Diagnosis], audit: Mapping[str, Any] | None = None
) -> list[Step]:
    """To resume a run, to repeat it with what would fix it, or to judge and use what was trained; the first is the most
    important one.

    Args:
        path: the run folder.
        diagnoses: alarms first, as :func:`~afzal.health.diagnose` gives them.
        audit: counts of the data, of ``data.json``.
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
    """The policy that the rounds recommend; where that is the one they started from, why."""
    best, start = str(facts.get("best") or ""), start_in(facts)
    if not best or best == start:
        return [step("report", path, "--open", why="why no round is better")]
    held_out = str(_config(facts).get("held_out_prompts") or "")
    return _is_it_better(best, start, held_out, named=True)


def _after_training(path: str, facts: Mapping[str, Any], audit: Mapping[str, Any]) -> list[Step]:
    method, config, start = method_in(facts), _config(facts), start_in(facts)
    data = facts.get("data")
    data = data if isinstance(data, Mapping) else {}
    source = str(data.get("source") or "")
    ordered = audit.get("pairs") != 0 and not (method is not None and method.online)
    found: list[Step] = []
    if method is not None and method.next is not None and source and ordered:
        found.append(step(*method.next(path, source)[1:], *_reading(config, method.writes)))
    if method is not None and not method.writes:
        usable = [step("train", "rloo", "--model", start, "--data", source, "--reward", path, why="learn from it")]
        return [*found, *(usable if start and source else [])]
    held_out = str(config.get("eval_data") or "")
    if start and data.get("media"):
        found += _is_it_better_with_media(path, start, held_out, sampled=bool(data.get("eval")))
    elif start:
        found += _is_it_better(path, start, held_out, named=not Path(start).is_dir())
    else:
        found.append(step("generate", "--model", path, "--prompt", "How are you?"))
    if config.get("adapter") and config["adapter"] not in VIRTUAL:
        found.append(step("export", path, "--out", f"{path}-merged", why="a model without an adapter"))
    return found[:3]


def _is_it_better(path: str, start: str, held_out: str, *, named: bool) -> list[Step]:
    """What answers that without a reward: blind votes in a chat; and people or a judge on held-out prompts.

    Args:
        named: whether the chat has to be told what the model started from.
    """
    against = ["--against", start] if named else []
    found = [step("chat", path, *against, "--blind", why="is it better? vote blind")]
    if held_out:
        asked = ["--against", start, "--prompts", held_out]
        found.append(step("judge", path, *asked, why="the same on held-out prompts, for several people"))
    return found


def _is_it_better_with_media(path: str, start: str, held_out: str, *, sampled: bool) -> list[Step]:
    """A chat takes texts alone: votes on answers to held-out prompts, or to those of the samples, whose images and
    sounds lie in the run folder."""
    prompts = held_out or (f"{path}/samples.jsonl" if sampled else "")
    if not prompts:
        return [step("report", path, "--open", why="nothing was held out to judge it by")]
    asked = ["--against", start, "--prompts", prompts]
    return [step("judge", path, *asked, why="is it better? vote blind")]


def _reading(config: Mapping[str, Any], writes: bool) -> list[str]:
    """The flags with which the run read its data, for a further run on the same file."""
    columns = config.get("columns") or {}
    named = {"columns": ",".join(f"{k}={v}" for k, v in columns.items()), "data-format": config.get("data_format")}
    if writes:
        named |= {"axis": config.get("axis"), "eos-token": config.get("eos_token")}
    return [word for key, value in named.items() if value for word in (f"--{key}", str(value))]


def _config(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    found = facts.get("config")
    return found if isinstance(found, Mapping) else {}
