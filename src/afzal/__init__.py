"""Afzal: turn human preferences into a better language model, and prove that it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from afzal._version import __version__

if TYPE_CHECKING:
    from afzal.runs import Run


def fit(method: str, /, *, model: Any, tokenizer: Any = None, resume: bool = False, **settings: Any) -> Run:
    """Train a model and return the run: its folder, metrics and facts.

    (Not called ``train``: importing the package ``afzal.train`` would put itself in this function's place.)

    Args:
        method: ``sft``, ``dpo``, ``ipo``, ``kto``, or ``prefer`` with any ``objective``.
        model: a folder, a hub id, or a `transformers` model in memory (then ``tokenizer`` too); trained in place, with
            a reference made of its present weights, and its calls work as before afterwards.
        resume: continue the run in ``out``.
        settings: the keys of the configuration, as on the command line: ``data``, ``out``, ``beta``, ``lr``, ...

    Raises:
        afzal.errors.AfzalError: a fault of the input; says what, where and how to fix it.
    """
    from afzal import config, recipes, runs

    given = model if hasattr(model, "state_dict") else None
    path = str(model) if given is None else getattr(given.config, "_name_or_path", "") or "in-memory model"
    settings_of_run = config.make(method, model=path, **settings)
    return runs.open_run(recipes.train(settings_of_run, resume=resume, model=given, tokenizer=tokenizer))


__all__ = ["__version__", "fit"]
