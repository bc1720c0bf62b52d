"""MLflow: the server, file or database of ``MLFLOW_TRACKING_URI``, experiment ``MLFLOW_EXPERIMENT_NAME``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from typing import Any

from .tracker import PROJECT, Line, RunInfo

_METRICS, _PARAMS = 1000, 100  # MLflow's limits per request
_LONGEST = 500  # characters of a parameter, the limit of older servers
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]")


def open_run(run_info: RunInfo) -> _Run:
    """Open the run with the given id, or a new run of the experiment with the settings as its parameters."""
    import mlflow  # pyright: ignore[reportMissingImports]

    client = mlflow.MlflowClient()
    if run_info.id is not None:
        client.update_run(run_info.id, status="RUNNING")
        return _Run(client, run_info.id)
    run = client.create_run(_experiment(client), run_name=run_info.name)
    params = [mlflow.entities.Param(key, str(value)[:_LONGEST]) for key, value in run_info.settings.items()]
    for k in range(0, len(params), _PARAMS):
        client.log_batch(run.info.run_id, params=params[k : k + _PARAMS])
    return _Run(client, run.info.run_id)


def _experiment(client: Any) -> str:
    """The id of the experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name)
        except MlflowException:  # another run was faster
            experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id


class _Run:
    def __init__(self, client: Any, run_id: str) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self.client, self.id = client, run_id
        self.where = f"run {run_id} in {mlflow.get_tracking_uri()}"

    def log(self, lines: Sequence[Line]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        milliseconds = int(1000 * time.time())
        metrics = [
            Metric(_NOT_ALLOWED.sub("_", name), value, milliseconds, line.step)
            for line in lines
            for name, value in line.metrics.items()
        ]
        for k in range(0, len(metrics), _METRICS):
            self.client.log_batch(self.id, metrics=metrics[k : k + _METRICS])

    def finish(self, complete: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if complete else "KILLED")
