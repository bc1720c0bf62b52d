"""``afzal plan``: memory, time and cost of a run before it starts. Reads no weights; torch only for ``--data``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli.flags import given, parameters, with_parameters
from afzal.config import PlanConfig
from afzal.errors import AfzalError

METHOD_HELP = f"What would be trained: {', '.join(config.METHODS)}."


def _plan(
    method: Annotated[str, typer.Argument(help=METHOD_HELP)] = "dpo",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **flags: Any,
) -> None:
    """Estimate what a training run needs, and on which layout it fits: memory by term, compute, traffic, time, cost.

    The model's configuration is enough; no weights are read. Exit code 2 if it does not fit.
    """
    from afzal import plan
    from afzal.api.planning import planned

    settings = config.build(PlanConfig, [config.Setting("method", method), *given(PlanConfig, flags)])
    result, job, chosen, device = planned(settings)
    typer.echo(json.dumps(result.body, indent=2) if as_json else str(result))
    if not result.ok:
        raise plan.does_not_fit(job, chosen.layout, device)
    if not as_json:
        _conclude(settings)


_OF_TRAINING = ("lora_rank", "batch_size", "epochs", "max_tokens", "tokens_per_forward", "dtype", "optimizer")
"""Plan settings that have the same name in training."""


def _conclude(settings: PlanConfig) -> None:
    """Print the command of the planned run, if the plan names its data. A built-in model shape becomes MODEL."""
    from afzal.cli.conclusion import print_conclusion
    from afzal.terminal.conclusion import MODEL, step

    if settings.data is None:
        return
    model = settings.model if Path(settings.model).is_dir() or "/" in settings.model else MODEL
    changed = {key: getattr(settings, key) for key in _OF_TRAINING if getattr(settings, key) != _default(key)}
    if settings.columns:
        changed["columns"] = ",".join(f"{name}={field}" for name, field in settings.columns.items())
    settings_used = {"model": model, "data": settings.data, **changed}
    try:
        config.build(
            config.METHODS[settings.method].settings, [config.Setting(k, v, k) for k, v in settings_used.items()]
        )
    except AfzalError:
        return  # the method needs more than a plan asks about
    flags = [word for key, value in settings_used.items() for word in (f"--{key.replace('_', '-')}", value)]
    print_conclusion("", [step("train", settings.method, *flags)])


def _default(key: str) -> Any:
    return PlanConfig.model_fields[key].default


command = with_parameters(_plan, parameters(PlanConfig, panel="Options"))
