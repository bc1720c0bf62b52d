"""Training from Python: single runs, rounds, comparisons, sweeps, ladders and the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afzal.api.inputs import INPUTS, Rows, is_source, out_of, path_of, plain, settings_of, wrong
from afzal.api.results import Result, Run
from afzal.errors import AfzalError

if TYPE_CHECKING:
    from afzal.train.callbacks import Progress

_MODEL = "a folder, a hub id, a run, or a transformers model in memory"
OnProgress = Callable[["Progress"], object]
"""Called with the run's progress; ``progress.stop("why")`` ends the run. The return value is ignored."""


def fit(
    method: str,
    *,
    model: Any,
    data: Rows,
    eval_data: Rows | None = None,
    tokenizer: Any = None,
    resume: bool = False,
    on_step: OnProgress | Sequence[OnProgress] = (),
    on_evaluation: OnProgress | Sequence[OnProgress] = (),
    on_end: Callable[[Run], object] | Sequence[Callable[[Run], object]] = (),
    **settings: Any,
) -> Run:
    """Train a model and return the run: its folder, metrics and curves (``afzal train`` on the command line).

    Args:
        method: ``sft``, ``dpo``, ``ipo``, ``kto``, ``reward``, ``rloo``, ... or ``prefer`` with any ``objective``.
        model: a folder, a hub id, a run, or a `transformers` model in memory (then ``tokenizer`` too). A model in
            memory is trained in place; the reference is a copy of its weights at the start.
        data: a path, a hub id, a list of dicts, a pandas frame, or a ``Dataset`` of datasets. Rows in memory are
            written to ``inputs/`` in the run folder, so that the run can be read, resumed and repeated without Python.
        eval_data: held-out rows; without it, a share of ``data`` is held out, by whole prompts.
        resume: continue the run in ``out``; data, functions and settings must not have changed.
        on_step: called after every logged update with a :class:`~afzal.train.callbacks.Progress`.
        on_evaluation: called after every evaluation, with the held-out metrics.
        on_end: called with the finished run.
        settings: the keys of the configuration, as on the command line: ``out``, ``beta``, ``lr`` (its peak),
            ``batch_size`` (items per update), ``max_tokens``, ... ``reward``, ``objective``, ``constraint``
            and ``constraint_score`` may be Python functions.

    Returns:
        The run. Its folder is a model that `transformers` can load.

    Raises:
        AfzalError: the input is wrong (the message says what, where and how to fix it), or a callback failed.

    Example:
        >>> rows = [{"prompt": f"{n} and {n}?", "chosen": f"{2 * n}.", "rejected": "No idea."} for n in range(40)]
        >>> run = afzal.fit("dpo", model="my-model", data=rows, out="runs/fit", batch_size=8, max_steps=2)
        >>> run.status()
        'finished'
    """
    from afzal import config, recipes, runs
    from afzal.train.callbacks import Callbacks, call_callback

    in_memory = model if hasattr(model, "state_dict") else None
    path = (
        path_of(model, "model", _MODEL)
        if in_memory is None
        else getattr(in_memory.config, "_name_or_path", "") or runs.IN_MEMORY
    )
    arguments: dict[str, Any] = {**settings, "data": data, "eval_data": eval_data}
    out = out_of(arguments, f"runs/{method}-rows", resume=resume)
    built = config.make(method, model=path, **_in_folder(arguments, out))
    at_end = _several(on_end, "on_end")
    callbacks = Callbacks(_several(on_step, "on_step"), _several(on_evaluation, "on_evaluation"))
    run = Run(recipes.train(built, resume=resume, model=in_memory, tokenizer=tokenizer, callbacks=callbacks))
    for fn in at_end:
        call_callback("on_end", fn, run, str(run.path))
    return run


train = fit
"""The name of the command."""


def iterate(
    *,
    model: str | PathLike[str],
    prompts: Rows,
    reward: Any,
    resume: bool = False,
    on_step: OnProgress | Sequence[OnProgress] = (),
    **settings: Any,
) -> Run:
    """Generate, score, pair and train in rounds: iterative DPO, RSO, online DPO, SPIN (docs/iterate.md).

    Args:
        model: the policy at the start of the first round.
        prompts: rows with prompts.
        reward: a reward model's folder, a function of a prompt and an answer (larger is better), or ``people``.
        resume: continue the rounds in ``out``, also if they were waiting for labels.
        on_step: called after every logged update of a round's training, as in :func:`fit`; ``progress.path`` is the
            round's own run, and ``progress.stop("why")`` ends the round's training and then the rounds.
        settings: as on the command line: ``out``, ``rounds``, ``n``, ``lr``, ``kl_budget`` (nats), ...

    Returns:
        The run of all rounds. Its folder holds each round's policy; ``facts()["best"]`` is the path of the one to use.

    Raises:
        AfzalError: the input is wrong.

    Example:
        >>> def short(prompt, answer):
        ...     return -float(len(answer))
        >>> run = afzal.api.iterate(model="my-model", prompts="prefs.jsonl", reward=short, out="runs/rounds", rounds=1,
        ...                         n=2, prompts_per_round=8, max_new_tokens=4, held_out=4, batch_size=4)
        >>> run.status()
        'finished'
    """
    from afzal import config
    from afzal.iterate import iterate as rounds
    from afzal.train.callbacks import Callbacks

    arguments: dict[str, Any] = {**settings, "model": model, "prompts": prompts, "reward": reward}
    out = out_of(arguments, "runs/iterate-rows", resume=resume)
    built = settings_of(config.IterateConfig, _in_folder(arguments, out))
    return Run(rounds(built, resume=resume, callbacks=Callbacks(_several(on_step, "on_step"))))


def compare(
    settings: str | PathLike[str] | Mapping[str, Any],
    /,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    **overrides: Any,
) -> Result:
    """Train or reuse several methods, plot reward against KL, and compare them (docs/compare.md).

    Args:
        settings: the comparison: a YAML file, or its keys as a mapping.
        dry_run: list what would be trained, and train nothing.
        say: called with lines of progress.
        overrides: single settings that replace those of ``settings``, such as ``out``.

    Returns:
        The figures of ``compare.json`` and the page. The same call resumes, and reuses finished runs.

    Raises:
        AfzalError: the input is wrong.

    Example:
        >>> study = {"model": "my-model", "prompts": "prefs.jsonl", "rewards": {"short": "rewards.py:short"},
        ...          "data": "prefs.jsonl", "methods": [{"name": "dpo", "train": "dpo"}], "seeds": [0]}
        >>> print(afzal.api.compare(study, out="study", dry_run=True))
        dpo-0: to be trained
    """
    from afzal import config
    from afzal.compare import compare as compared
    from afzal.compare import plan as planned

    study = _study(config.CompareConfig, settings, overrides)
    if dry_run:
        return Result(study.model_dump(mode="json"), planned(study))
    page = compared(study, say=say)
    return _written(page, [f"report: {page}"])


def sweep(
    settings: str | PathLike[str] | Mapping[str, Any],
    /,
    *,
    more: int = 0,
    jobs: int = 1,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    **overrides: Any,
) -> Result:
    """Train many arms, choose the best on held-out prompts within a KL budget, and confirm it with fresh seeds
    (docs/sweep.md).

    Args:
        settings: the sweep: a YAML file, or its keys as a mapping.
        more: number of arms to add to those of earlier calls.
        jobs: number of parallel trainings, as far as memory allows.
        dry_run: list what would be trained, and train nothing.
        say: called with lines of progress.
        overrides: single settings that replace those of ``settings``, such as ``out``.

    Returns:
        The figures of ``sweep.json`` and the page; not ``ok`` if no arm finished.

    Raises:
        AfzalError: the input is wrong.

    Example:
        >>> base = {"method": "dpo", "model": "my-model", "data": "prefs.jsonl", "batch_size": 8}
        >>> study = {"base": base, "space": {"beta": [0.1, 0.5]}, "search": "grid", "prompts": "prefs.jsonl",
        ...          "rewards": {"short": "rewards.py:short"}, "goal": {"maximize": "reward", "within": {"kl": 4}}}
        >>> afzal.api.sweep(study, out="arms", dry_run=True).ok
        True
    """
    from afzal import config
    from afzal.sweep import plan as planned
    from afzal.sweep import sweep as swept

    study = _study(config.SweepConfig, settings, overrides)
    if dry_run:
        return Result(study.model_dump(mode="json"), planned(study, more=more))
    outcome = swept(study, more=more, jobs=jobs, say=say)
    result = _written(outcome.page, [f"report: {outcome.page}"])
    return Result(result.body, result.lines, result.page, ok=bool(outcome.finished))


def ladder(
    settings: str | PathLike[str] | Mapping[str, Any],
    /,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    **overrides: Any,
) -> Result:
    """Recursive reward modelling: levels of an assisted judge, each trained from the one below (docs/debate.md).

    Args:
        settings: the ladder: a YAML file, or its keys as a mapping.
        dry_run: list the stages, and do nothing.
        say: called with lines of progress.
        overrides: single settings that replace those of ``settings``, such as ``levels`` and ``out``.

    Returns:
        The figures of ``ladder.json`` and the page. The same call resumes, and more ``levels`` continue a finished one.

    Raises:
        AfzalError: the input is wrong.

    Example:
        >>> judge = {"kind": "assisted", "judge": {"kind": "model", "model": "my-model"},
        ...          "assistant": {"kind": "reward", "model": "${reward}"}}
        >>> study = {"model": "my-model", "data": "prefs.jsonl", "eval_data": "prefs.jsonl", "judge": judge}
        >>> print(afzal.api.ladder(study, out="ladder", levels=1, dry_run=True))
        level 0: labels to be made, reward to be made, policy to be made, measured to be made
        level 1: labels to be made, reward to be made, policy to be made, measured to be made
    """
    from afzal import config
    from afzal.ladder import ladder as climbed
    from afzal.ladder import plan as planned

    study = _study(config.LadderConfig, settings, overrides)
    if dry_run:
        return Result(study.model_dump(mode="json", by_alias=True), planned(study))
    page = climbed(study, say=say)
    return _written(page, [f"report: {page}"])


def demo(
    *,
    out: str | PathLike[str] = "demo",
    quick: bool = False,
    model: str | PathLike[str] | None = None,
    data: Rows | None = None,
) -> Path:
    """Run the whole pipeline on a language whose true reward is known exactly; then on ``model`` and ``data`` if given.

    Args:
        out: folder for the runs and the page.
        quick: fewer updates: seconds instead of minutes.
        model: a model folder or hub id, to train on ``data`` as well.
        data: preference rows for ``model``.

    Returns:
        The folder.

    Raises:
        AfzalError: only one of ``model`` and ``data`` is given.

    Example:
        >>> afzal.api.demo(out="demo", quick=True)  # doctest: +SKIP
    """
    if (model is None) != (data is None):
        raise AfzalError("model and data go together", remedy="give both, or neither")
    from afzal.lab import demo as language

    arguments = plain({"model": model, "data": data})
    language.run(out=Path(out), quick=quick, model=arguments.get("model"), data=arguments.get("data"))
    return Path(out)


def _study(kind: Any, settings: Any, overrides: Mapping[str, Any]) -> Any:
    """The settings of a study from a file or a mapping, with overrides."""
    from afzal import config

    file = is_source(settings)
    base = config.read_file(settings) if file else []
    if not file and not isinstance(settings, Mapping):
        raise wrong(settings, "settings", "a YAML file, or its keys as a mapping")
    arguments = {**({} if file else settings), **overrides}
    out = arguments.get("out") or next((s.value for s in base if s.key == "out"), kind.model_fields["out"].default)
    return settings_of(kind, arguments, Path(path_of(out, "out")) / INPUTS, base)


def _in_folder(arguments: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    """Settings as text; rows in memory are written to the run folder, which the settings then name."""
    if out is None:
        return plain(arguments)
    return plain({**arguments, "out": out}, out / INPUTS)


def _written(page: Path, lines: Sequence[str]) -> Result:
    import json

    return Result(json.loads(page.with_suffix(".json").read_text("utf-8")), lines, page)


def _several(value: Any, name: str) -> tuple[Any, ...]:
    """Callbacks as a tuple; a single function counts as one."""
    callbacks = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(map(callable, callbacks)):
        raise wrong(value, name, "a function, or a list of functions")
    return callbacks
