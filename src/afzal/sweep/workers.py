"""Parallel trainings, each in its own process, as many as requested and as memory allows.

A worker always ends with its parent process, so that no orphaned process writes a run.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from afzal.compare.folder import study_date
from afzal.compare.trainings import Stage, stages_of
from afzal.config import CompareConfig
from afzal.errors import AfzalError
from afzal.model.load import pick_device
from afzal.model.memory import free_bytes
from afzal.recipes import Stopped
from afzal.runs.environment import usable_cpus
from afzal.sweep.training import Evaluator, Failure, Say, train_and_measure
from afzal.train.signals import stop_on_signals

_SPARE = 0.8  # of the free memory, for further trainings
_LOOK = 0.5  # seconds between two checks for a signal

Outcome = dict[str, Failure | None]
"""By training name: None if it finished, else the failure."""


def run_sequentially(evaluator: Evaluator, stages: Sequence[Stage], say: Say) -> Outcome:
    """Run the trainings one after the other in this process."""
    outcome: Outcome = {}
    for k, stage in enumerate(stages, 1):
        outcome[stage.name] = train_and_measure(evaluator, stage, lambda line, k=k: say(f"[{k}/{len(stages)}] {line}"))
        _report(outcome, stage.name, say)
    return outcome


def run_in_parallel(
    evaluator: Evaluator, comparison: CompareConfig, stages: Sequence[Stage], jobs: int, say: Say
) -> Outcome:
    """Run the trainings in at most ``jobs`` processes.

    The first one runs alone: it computes the reference for all, and shows how much memory a training needs.

    Args:
        comparison: the comparison to which the stages belong.

    Raises:
        Stopped: a signal asked to stop; all trainings have saved their state.
    """
    todo, outcome, workers = list(stages), Outcome(), list[_Worker]()
    limit = 1
    with stop_on_signals() as stop:
        try:
            while todo or any(w.task for w in workers):
                for worker in (w for w in workers if not w.task and todo):
                    worker.assign(todo.pop(0), say)
                if todo and len(workers) < limit:
                    workers.append(_Worker.start(evaluator.config, comparison, jobs))
                    continue
                for worker, answer in _answers(workers):
                    peak = _handle(worker, answer, outcome, say)
                    if peak and limit == 1 and jobs > 1:
                        limit = _parallel_limit(evaluator, peak, jobs, say)
                workers = [w for w in workers if w.process.is_alive() or w.task]
                if stop.requested:
                    _stop_workers(workers)
                    raise Stopped(stop.requested, Path(evaluator.config.out), 0, remedy="the same command resumes")
        except BaseException:
            _stop_workers(workers)
            raise
        for worker in workers:
            worker.dismiss()
    return outcome


@dataclass(slots=True)
class _Worker:
    """A training process, the connection to it, and its current task. ``keepalive`` stays open as long as this process
    lives."""

    process: Any
    connection: Connection
    keepalive: Connection
    task: str = ""

    @classmethod
    def start(cls, measuring: CompareConfig, comparison: CompareConfig, jobs: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        parent_end, child_end = context.Pipe()
        ending, keepalive = context.Pipe(duplex=False)
        threads = max(1, usable_cpus() // jobs)
        settings = (measuring.model_dump_json(), comparison.model_dump_json())
        process = context.Process(target=_serve, args=(child_end, ending, *settings, threads))
        process.start()
        child_end.close()
        ending.close()
        return cls(process, parent_end, keepalive)

    def assign(self, stage: Stage, say: Say) -> None:
        self.task = stage.name
        with suppress(OSError):  # a dead worker is detected when it is read from
            self.connection.send(stage.name)

    def dismiss(self) -> None:
        with suppress(OSError):
            self.connection.send(None)
        self.process.join()


def _answers(workers: Sequence[_Worker]) -> list[tuple[_Worker, tuple[Any, ...]]]:
    """The workers' messages; for a dead worker, its exit code."""
    busy = {w.connection: w for w in workers if w.task}
    answers = []
    for connection in wait(list(busy), timeout=_LOOK):
        worker = busy[connection]  # type: ignore[index]
        try:
            answers.append((worker, worker.connection.recv()))
        except (EOFError, OSError):
            worker.process.join()
            answers.append((worker, ("gone", worker.process.exitcode)))
    return answers


def _handle(worker: _Worker, message: tuple[Any, ...], outcome: Outcome, say: Say) -> int:
    """Handle a message; return the peak bytes of a finished training, 0 if none finished."""
    kind, *values = message
    if kind == "say":
        say(values[0])
        return 0
    if kind == "fault":
        raise AfzalError(values[0], where=values[1], why=values[2], remedy=values[3])
    name, worker.task = worker.task, ""
    if kind == "gone":
        outcome[name] = Failure(f"its process ended with exit code {values[0]}")
    elif kind == "failed":
        outcome[name] = Failure(*values)
    else:
        outcome[name] = None
    _report(outcome, name, say)
    return values[0] if kind == "done" else 0


def _report(outcome: Mapping[str, Failure | None], name: str, say: Say) -> None:
    if (failure := outcome[name]) is not None:
        say(f"{name}: failed: {failure.why}")


def _parallel_limit(evaluator: Evaluator, peak: int, jobs: int, say: Say) -> int:
    """The number of trainings, at most ``jobs``, that fit into memory together, including the first one."""
    free = free_bytes(pick_device(evaluator.config.device))
    n_fitting = jobs if free is None else 1 + int(_SPARE * free / peak)
    if n_fitting < jobs:
        say(f"one training takes {peak / 1e9:.1f} GB: {n_fitting} fit into memory at the same time, not {jobs}")
    return min(n_fitting, jobs)


def _stop_workers(workers: Sequence[_Worker]) -> None:
    """Make every worker save its state, and wait for it."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join()


def _serve(connection: Connection, ending: Connection, measuring: str, comparison: str, threads: int) -> None:
    """The worker's main loop: run trainings by name until None, each with its output in a separate file."""
    import torch

    threading.Thread(target=_end_with_parent, args=(ending,), daemon=True).start()
    torch.set_num_threads(threads)
    evaluator = Evaluator(CompareConfig.model_validate_json(measuring))
    stages = {s.name: s for s in stages_of(CompareConfig.model_validate_json(comparison))}
    folder = Path(evaluator.config.out) / "stages"
    with study_date(evaluator.config.out), suppress(EOFError):
        while (name := connection.recv()) is not None:
            _redirect(folder / f"{name}.log")
            try:
                failure = train_and_measure(evaluator, stages[name], lambda line: connection.send(("say", line)))
            except (Stopped, KeyboardInterrupt):  # Ctrl-C reaches the whole group of processes
                return
            except AfzalError as error:
                connection.send(("fault", error.what, error.where, error.why, error.remedy))
                return
            connection.send(("done", _peak_bytes()) if failure is None else ("failed", failure.why, failure.diverged))


def _end_with_parent(ending: Connection) -> None:
    with suppress(EOFError, OSError):
        ending.recv()
    os._exit(1)


def _redirect(path: Path) -> None:
    """Redirect the process's output to a file; several progress bars on one terminal would be unreadable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def _peak_bytes() -> int:
    """The peak memory of this process: of the GPU if it uses one, else of the machine."""
    import torch

    if torch.cuda.is_available() and (most := torch.cuda.max_memory_reserved()):
        return most
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows: unknown, so trainings run one after the other
        return 0
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
