"""``afzal plan``: memory, time and cost of a run before it is started. No weights; torch only for ``--data``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli.flags import given, parameters, with_parameters
from afzal.config import PlanConfig

METHOD_HELP = f"What would be trained: {', '.join(config.METHODS)}."


def _plan(
    method: Annotated[str, typer.Argument(help=METHOD_HELP)] = "dpo",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **flags: Any,
) -> None:
    """Say what a training run needs, and on which layout it fits: memory by term, arithmetic, traffic, time, cost.

    The model's configuration is enough; no weights are read. Exit code 2 when it does not fit.
    """
    from afzal import plan
    from afzal.api.planning import planned

    settings = config.build(PlanConfig, [config.Setting("method", method), *given(PlanConfig, flags)])
    said, job, found, device = planned(settings)
    typer.echo(json.dumps(said.body, indent=2) if as_json else str(said))
    if not said.ok:
        raise plan.does_not_fit(job, found.layout, device)


command = with_parameters(_plan, parameters(PlanConfig, panel="Options"))
