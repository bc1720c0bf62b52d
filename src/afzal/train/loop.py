"""The training loop. It knows objectives only by their properties, never by name.

Each update: count the items or units of all micro-batches, add up (weight * loss).sum() / count over them, clip,
check that loss and gradient are finite, step, log. Sums and counts are passed on; means are taken once, at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.objectives.metrics import Tally, means
from afzal.train.dtensor import clip_gradients
from afzal.train.evaluate import Evaluator
from afzal.train.feed import Update, Updates
from afzal.train.method import Carried, Method, forget_gradient, hand_over, parameters_by_name, publish
from afzal.train.precision import Weights
from afzal.train.prefetch import with_prefetch
from afzal.train.retry import steps_made, within_memory
from afzal.train.rollouts import SamplingStopped
from afzal.train.shard import Sharded
from afzal.train.update import Accumulate, accumulate

Schedule = Literal["constant", "linear", "cosine"]


class NotFinite(AfzalError):  # noqa: N818 - named for the state of the number
    """The loss or the gradient is not finite: training has diverged, or the data are broken."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers of the loop; intervals are in updates.

    Attributes:
        lr: the highest learning rate.
        warmup_steps: updates of linear warm-up.
        schedule: after the warm-up: constant rate, or linear or cosine decay to 0.
    """

    steps: int
    lr: float
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    max_grad_norm: float = 1.0
    eval_every_steps: int = 0
    save_every_steps: int = 0
    log_every_steps: int = 1
    patience: int = 0

    def lr_at(self, step: int) -> float:
        """The learning rate of update ``step``, from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant" or self.steps <= self.warmup_steps:
            return self.lr
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.lr * (1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))


def warmup_steps(warmup: float, steps: int) -> int:
    """Warm-up updates: ``warmup`` is a share of all updates if below 1, else a number of updates."""
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


@dataclass(slots=True)
class State:
    """The state of a run: everything except weights, optimiser and generators that must survive a kill."""

    step: int = 0
    tokens: int = 0
    examples: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    stale_evaluations: int = 0
    tokens_per_forward: int = 0  # if lowered below the setting; else 0
    carried: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hooks:
    """Actions around the updates: the loop decides when, the recipe decides what."""

    log: Callable[[dict[str, Any]], None] = lambda record: None
    evaluate: Evaluator | None = None
    save: Callable[[State], None] = lambda state: None
    improved: Callable[[State], None] = lambda state: None
    stop: Callable[[], str | None] = lambda: None
    stepped: Callable[[int], None] = lambda step: None
    say: Callable[[str], None] = lambda line: None
    save_due: Callable[[], bool] = lambda: False
    restart_with: Callable[[int], None] = lambda tokens_per_forward: None


def fit(
    model: Any,
    method: Method,
    feed: Updates,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    *,
    hooks: Hooks,
    state: State,
    weights: Weights | Sharded | None = None,
    gradient: Accumulate = accumulate,
) -> str:
    """Train from ``state`` to the end; returns why it stopped: ``finished``, ``early`` or a signal's name.

    Args:
        weights: the optimiser's weights, if they are not the model's own parameters.
        gradient: computes an update's gradient.

    Raises:
        AfzalError: the loss or the gradient is not finite (before the weights move), naming the rows.
    """
    weights = weights or Weights(model, "fp32")
    parameters = list(parameters_by_name(weights.carriers, method).values())
    state.carried = state.carried or method.start()
    start_time = time.perf_counter() - state.seconds
    feed = with_prefetch(feed, settings.steps)

    def work(update: Update) -> tuple[dict[str, float], Carried]:
        _, metrics, carried = gradient(model, method, update, state.carried)
        grad_norm = clip_gradients(parameters, settings.max_grad_norm or math.inf)
        figures = _checked(grad_norm, metrics, update, state.step)
        hand_over(weights, method)
        optimizer.step()
        return figures, carried

    def lowered(tokens: int) -> None:
        hooks.say(f"out of memory: update {state.step + 1} again, with {tokens} tokens per forward pass")
        hooks.log({"kind": "memory", "step": state.step, "tokens_per_forward": tokens})
        state.tokens_per_forward = tokens

    steps_ahead = steps_made(optimizer) - state.step
    if state.step == 0:
        evaluate_and_log(hooks, state, start_time)
    while state.step < settings.steps:
        try:
            update = feed.update(state.step)
        except SamplingStopped as stop:
            if state.step:
                hooks.save(state)
            return stop.signal
        if update.record:
            state.seconds = time.perf_counter() - start_time
            hooks.log({"step": state.step, "seconds": round(state.seconds, 3), **update.record})
        lr = settings.lr_at(state.step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        steps_before = state.step + steps_ahead
        update, (figures, carried) = within_memory(
            work,
            update,
            feed,
            step=state.step,
            steps_before=steps_before,
            forget=partial(forget_gradient, weights, method),
            optimizer=optimizer,
            lowered=lowered,
            restart_with=hooks.restart_with,
        )
        optimizer.zero_grad(set_to_none=True)
        publish(weights, method)
        state.step += 1
        state.carried = carried
        hooks.stepped(state.step)
        state.tokens += update.n_tokens
        state.examples += update.n_trees
        state.seconds = time.perf_counter() - start_time
        last = state.step == settings.steps
        if last or due(state.step, settings.log_every_steps):
            hooks.log(_record(state, feed, lr, figures))
        if last or due(state.step, settings.eval_every_steps):
            evaluate_and_log(hooks, state, start_time)
            if settings.patience and state.stale_evaluations >= settings.patience:
                hooks.save(state)
                return "early"
        signal = hooks.stop()
        if signal or last or due(state.step, settings.save_every_steps) or hooks.save_due():
            hooks.save(state)
        if signal and not last:
            return signal
    return "finished"


def evaluate_and_log(hooks: Hooks, state: State, start_time: float | None = None) -> None:
    """Evaluate and log the result, if anything is held out.

    Args:
        start_time: when the run's clock started (``time.perf_counter``); default: ``state.seconds`` ago.
    """
    if hooks.evaluate is None:
        return
    start_time = time.perf_counter() - state.seconds if start_time is None else start_time
    figures = hooks.evaluate(state.step, state.carried)
    state.seconds = time.perf_counter() - start_time
    hooks.log({"kind": "eval", "step": state.step, "seconds": round(state.seconds, 3), **figures})
    # a policy that learns from rewards has no held-out loss, but an objective to maximise
    loss = figures.get("loss", -figures.get("objective", -math.inf))
    if loss < state.best_loss:
        state.best_loss, state.best_step, state.stale_evaluations = loss, state.step, 0
        hooks.improved(state)
    else:
        state.stale_evaluations += 1


def _record(state: State, feed: Updates, lr: float, figures: Mapping[str, float]) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": state.step,
        "epoch": round(state.step / feed.updates_per_epoch, 4),
        "seconds": round(state.seconds, 3),
        "tokens": state.tokens,
        "examples": state.examples,
        "lr": lr,
        **figures,
    }


def due(step: int, every: int) -> bool:
    """Whether something that happens every ``every`` updates is due after this one; never if ``every`` is 0."""
    return every > 0 and step % every == 0


def _checked(grad_norm: Tensor, metrics: Tally, update: Update, step: int) -> dict[str, float]:
    """The metrics of an update, in a single read from the device. Raises if they are not finite, before the weights
    change.

    There is no loss if nothing in the update has any weight.
    """
    figures = means({"loss": metrics["loss"], "grad_norm": (grad_norm, torch.ones_like(grad_norm)), **metrics})
    loss = figures.get("loss", 0.0)
    if math.isfinite(loss) and math.isfinite(figures["grad_norm"]):
        return figures
    what = "gradient" if math.isfinite(loss) else "loss"
    numbers = f"(loss {loss}, gradient norm {figures['grad_norm']})"
    raise NotFinite(
        f"the {what} is not finite in update {step + 1} {numbers}",
        where="rows " + _shorten(update.item_ids),
        why="the weights were not changed, and all earlier checkpoints are sound",
        remedy="look at those rows (afzal check --show), lower lr, or train in fp32",
    )


def _shorten(names: list[str], n: int = 8) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


__all__ = ["Hooks", "Method", "Settings", "State", "accumulate", "due", "evaluate_and_log", "fit"]
