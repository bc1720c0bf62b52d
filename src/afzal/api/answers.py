"""Use trained models: generate answers, score responses, merge adapters, upload, revise answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afzal.api.inputs import Model, Rows, path_of, settings_of
from afzal.api.results import Result

if TYPE_CHECKING:
    from afzal.config import ReviseConfig


def generate(
    *,
    model: Model,
    prompt: str | None = None,
    prompts: Rows | None = None,
    out: str | PathLike[str] | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """A model's answers to one prompt, or to rows of prompts.

    Args:
        model: a run, a folder or a hub id.
        prompt: a single prompt; or ``prompts``.
        prompts: rows with prompts in any format, or a list of texts.
        out: also write the answers to this JSONL file.
        settings: as on the command line: ``n`` (answers per prompt), ``max_new_tokens`` (tokens), ``temperature``
            (0 is greedy), ``seed``, ...

    Returns:
        One dict per answer, ordered by prompt: ``prompt``, ``completion``, ``tokens`` (their number, with the end
        mark), ``stop`` (``eos``, or ``length`` if the limit cut it), and the other columns of the prompt's row.

    Raises:
        AfzalError: the model or the prompts cannot be read, or ``out`` exists.

    Example:
        >>> answers = afzal.api.generate(model="my-model", prompts=["Hello", "Bye"], n=2, max_new_tokens=4)
        >>> len(answers), answers[0]["prompt"]
        (4, 'Hello')
    """
    from afzal import config
    from afzal.generate.run import answers

    arguments = {"model": model, "prompts": prompts, "prompt": prompt, "out": out, **settings}
    return answers(settings_of(config.GenerateConfig, arguments))


def score(
    data: Rows,
    *,
    model: Model | None = None,
    policy: Model | None = None,
    reference: Model | None = None,
    out: str | PathLike[str] | None = None,
    **settings: Any,
) -> Result:
    """Score every response in the rows with a reward model, or with a policy and its reference.

    Args:
        data: rows with responses.
        model: a reward model; or ``policy`` and ``reference``, scored by beta (log pi - log pi_ref), nats.
        out: JSONL file for the scores.
        settings: as on the command line: ``beta``, ``max_tokens`` (tokens), ...

    Returns:
        ``lines`` say how often the scores agree with the preferences of the rows; ``rows`` are the scored responses,
        with ``score`` (larger is better).

    Raises:
        AfzalError: data or model cannot be read, nothing can be scored, or ``out`` exists.

    Example:
        >>> result = afzal.api.score("prefs.jsonl", policy="runs/dpo", reference="my-model")
        >>> round(result.rows[0]["score"], 3) != 0
        True
    """
    from afzal import config
    from afzal.rewards.score import scored_rows

    arguments = {"data": data, "model": model, "policy": policy, "reference": reference, "out": out, **settings}
    rows, lines = scored_rows(settings_of(config.ScoreConfig, arguments))
    return Result({"scored": len(rows)}, lines, rows=rows)


def export(run: Model, /, *, out: str | PathLike[str], **settings: Any) -> Result:
    """Merge a trained adapter into its base model, and check that its log-probs do not change.

    Args:
        run: the adapter: a run, a folder or a hub id.
        out: folder for the merged model, which `transformers` can load.
        settings: as on the command line: ``data``, ``dtype``, ...

    Returns:
        ``out``; the lines state the largest difference of a token's log-prob, in nats.

    Raises:
        AfzalError: there is no adapter, the log-probs differ by more than rounding, or ``out`` exists.

    Example:
        >>> print(afzal.api.export("runs/lora", out="merged"))  # doctest: +ELLIPSIS
        merged...
    """
    from afzal import config, recipes

    built = settings_of(config.ExportConfig, {"model": run, "out": out, **settings})
    return Result({"out": str(built.out)}, recipes.export(built), Path(built.out))


def push(run: Model, repository: str, /, *, public: bool = False) -> str:
    """Upload a finished model and its card to the hub: weights, tokenizer and card; no samples, metrics or rows.

    Args:
        run: a finished run, or the folder of an exported model.
        repository: ``owner/name``.
        public: make the repository public if it is new; default: private.

    Returns:
        A sentence that says what was done.

    Raises:
        AfzalError: the folder holds no weights, there is no token, or the hub refuses or cannot be reached.

    Example:
        >>> afzal.api.push("runs/dpo", "me/model")  # doctest: +SKIP
    """
    from afzal import hub

    return hub.push(path_of(run, "run"), repository, private=not public)


def revise(
    *, model: Model, prompts: Rows, principles: str | PathLike[str], out: str | PathLike[str], **settings: Any
) -> Result:
    """Make preference pairs from principles: answers, critiques, revisions, or a judge's labels (docs/principles.md).

    Args:
        model: writes answers, critiques and revisions: a run, a folder or a hub id.
        prompts: rows with prompts in any format, or a list of texts.
        principles: YAML file of the principles.
        out: folder for ``pairs.jsonl``, stages and report. The same call resumes.
        settings: as on the command line: ``mode``, ``rounds``, ``judge``, ``max_new_tokens`` (tokens), ...

    Returns:
        The report; not ``ok`` if no pair was made.

    Raises:
        AfzalError: a model, a judge or the prompts cannot be read.

    Example:
        >>> about = {"principles": "principles.yaml", "out": "revised", "max_new_tokens": 4}
        >>> result = afzal.api.revise(model="my-model", prompts=["How are you?", "Who are you?"], **about)
        >>> result["pairs"] >= 0
        True
    """
    from afzal import config

    arguments = {"model": model, "prompts": prompts, "principles": principles, "out": out, **settings}
    return run_revision(settings_of(config.ReviseConfig, arguments))


def run_revision(settings: ReviseConfig, say: Callable[[str], None] = lambda line: None) -> Result:
    """Make the pairs of these settings, and the report.

    Raises:
        AfzalError: as for :func:`revise`.
    """
    from afzal.principles.run import PAIRS, REPORT, revise
    from afzal.text import interval, number, visible

    report = revise(settings, say=say)
    lines = [
        f"{f['name']}: {number(f['value'], 3)} {interval(f['low'], f['high'])}".rstrip() for f in report["figures"]
    ]
    lines += map(visible, report["findings"])
    pairs, page = Path(settings.out, PAIRS), Path(settings.out, f"{REPORT}.html")
    rows = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()] if pairs.is_file() else []
    return Result(report, [*lines, f"page: {page}"], page, rows=rows, ok=report["pairs"] > 0)
