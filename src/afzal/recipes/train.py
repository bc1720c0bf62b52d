"""One training run, from a configuration to a folder that loads: the same for every method."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from afzal import objectives, report, runs
from afzal.config import ReferenceConfig, TrainConfig
from afzal.errors import AfzalError
from afzal.model.attention import attention_restored
from afzal.model.load import (
    add_lora,
    is_adapted,
    load_model,
    pick_device,
    recompute_activations,
    save_model,
    switch_off_dropout,
)
from afzal.model.probe import choose_sharing
from afzal.model.reference import AdapterOff, Frozen, Reference, Remembered, cache_key, cached, live_reference
from afzal.recipes.methods import RECIPES
from afzal.recipes.prepare import Prepared, prepare
from afzal.recipes.watch import Watch, stop_ids
from afzal.tokens.batch import Sharing
from afzal.train import checkpoint
from afzal.train.evaluate import evaluate
from afzal.train.feed import Feed, Layout
from afzal.train.loop import Hooks, Method, Settings, State, fit
from afzal.train.optim import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    trainable,
    warmup_steps,
)
from afzal.train.progress import Reporter
from afzal.train.signals import StopSignals, stop_on_signals

_EVALUATIONS_PER_RUN = 10


class Stopped(AfzalError):  # noqa: N818 - a request, not a fault
    """The run was asked to stop; it has saved a checkpoint. ``signal`` is the name of what asked."""

    def __init__(self, signal: str, path: Path, step: int) -> None:
        super().__init__(
            f"stopped by {signal} after step {step}; everything is saved",
            remedy=f"continue with: afzal train {path}/run.yaml --resume",
        )
        self.signal = signal


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a run holds in memory."""

    model: Any
    prepared: Prepared
    method: Method
    feed: Feed
    optimizer: torch.optim.Optimizer
    settings: Settings


def train(
    config: TrainConfig, *, resume: bool = False, command: str = "", model: Any = None, tokenizer: Any = None
) -> Path:
    """Run the training that ``config`` describes and return the run folder.

    Args:
        resume: continue the run in ``config.out`` from its newest sound checkpoint.
        command: what the person typed, for the record.
        model, tokenizer: objects to train instead of those of ``config.model``; the reference is then made of these
            very weights.

    Raises:
        AfzalError: a fault of the input or the set-up; :class:`Stopped` when a signal ended the run early.
    """
    prepared = prepare(config, model=model, tokenizer=tokenizer)
    run = _open(config, prepared, resume)
    if command:
        run.update(command=command)
    restored = nullcontext() if model is None else attention_restored(model)
    with run, restored, stop_on_signals() as stop:
        try:
            return _train(config, run, prepared, model, stop, resume)
        except Stopped:
            raise
        except BaseException as error:
            with suppress(AfzalError):  # on a full disk even this may fail; the first error is the one to tell
                run.update(status="failed", stop_reason=f"{type(error).__name__}: {error}", finished=_now())
            raise


def _train(config: TrainConfig, run: runs.Run, prepared: Prepared, model: Any, stop: StopSignals, resume: bool) -> Path:
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    if model is None:
        model = load_model(config.model, device=device)
    else:
        switch_off_dropout(model.to(device).eval())
    setup = _set_up(config, prepared, model, device, run)
    state = _restore(run, setup) if resume else State()
    _announce(config, run, setup, prepared)
    watch = Watch.make(config, setup.model, prepared, setup.method.reference, setup.feed.layout, run.path)
    with Reporter(setup.settings.steps, state.step) as reporter:
        for line in _banner(config, run, setup, prepared, state):
            reporter.say(line)
        hooks = _hooks(config, run, setup, watch, reporter, stop)
        if state.step == 0:
            _check_first_loss(setup, reporter.say)
        reason = fit(setup.model, setup.method, setup.feed, setup.optimizer, setup.settings, hooks=hooks, state=state)
    run.update(step=state.step, seconds=round(state.seconds, 3), stop_reason=reason)
    if reason in ("SIGINT", "SIGTERM"):
        run.update(status="stopped", finished=_now())
        raise Stopped(reason, run.path, state.step)
    if reason == "early":
        _keep_best(run, setup, state, watch)
    return _finish(run, setup, prepared, state)


def _open(config: TrainConfig, prepared: Prepared, resume: bool) -> runs.Run:
    plain = config.model_dump(mode="json")
    run = runs.resume(config.out) if resume else runs.create(config.out, plain)
    if resume:
        _refuse_changes(run, plain, prepared)
        run.update(status="running")
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in prepared.losses)
    runs.atomic_write(run.path / "losses.jsonl", lines)
    runs.atomic_write(run.path / "data.json", json.dumps(prepared.audit, indent=2, default=str) + "\n")
    return run


def _refuse_changes(run: runs.Run, config: Mapping[str, Any], prepared: Prepared) -> None:
    """A resumed run must be the same run: any other setting or other data is refused by name."""
    facts = run.facts()
    before = facts.get("config", {})
    different = [k for k, v in config.items() if k != "out" and before.get(k, v) != v]
    changed = [f"{k}: {before[k]!r} -> {config[k]!r}" for k in different]
    if facts.get("data", {}).get("fingerprint") not in (None, prepared.facts["fingerprint"]):
        changed.append("data: the content of the training data has changed")
    if changed:
        raise AfzalError(
            f"{run.path} cannot be resumed with other settings",
            why="; ".join(changed),
            remedy="give the settings of run.yaml, or start a new run with another --out",
        )


def _set_up(config: TrainConfig, prepared: Prepared, model: Any, device: torch.device, run: runs.Run) -> Setup:
    if config.lora_rank is not None:
        if is_adapted(model):
            raise AfzalError(
                f"{config.model} is an adapter already",
                remedy="leave lora_rank out to train it on, or merge it into its base model first",
            )
        alpha = config.lora_alpha if config.lora_alpha is not None else 2.0 * config.lora_rank
        model = add_lora(model, rank=config.lora_rank, alpha=alpha, targets=config.lora_targets or "all-linear")
    sharing = _sharing(config, model)
    layout = Layout(sharing, config.tokens_per_forward, device)
    objective = objectives.get(RECIPES[config.method].objective)
    autocast = _autocast(config, device)
    reference = _reference(config, model, prepared, layout, autocast, run) if objective.needs_reference else None
    if config.gradient_checkpointing:
        recompute_activations(model)
    method = Method(objective, RECIPES[config.method].parameters(config), reference)
    feed = Feed(prepared.train, prepared.train_mismatched, config.batch_size, config.seed, layout)
    optimizer = make_optimizer(
        list(trainable(model).values()),
        config.optimizer,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
    )
    return Setup(model, prepared, method, feed, optimizer, _settings(config, feed, autocast, bool(prepared.evaluation)))


def _steps(config: TrainConfig, feed: Feed) -> int:
    steps = max(1, round(config.epochs * feed.updates_per_epoch))
    return min(steps, config.max_steps) if config.max_steps else steps


def _settings(config: TrainConfig, feed: Feed, autocast: Callable[[], Any], evaluates: bool) -> Settings:
    steps = _steps(config, feed)
    lr = partial(
        learning_rate,
        peak=config.lr,
        steps=steps,
        warmup_steps=warmup_steps(config.warmup, steps),
        schedule=config.lr_schedule,
    )
    return Settings(
        steps=steps,
        lr=lr,
        max_grad_norm=config.max_grad_norm,
        eval_every_steps=(config.eval_every_steps or max(1, -(-steps // _EVALUATIONS_PER_RUN))) if evaluates else 0,
        save_every_steps=config.save_every_steps or 0,
        log_every_steps=config.log_every_steps,
        patience=config.early_stop_patience or 0,
        autocast=autocast,
    )


def _sharing(config: TrainConfig, model: Any) -> Sharing:
    if config.sharing == "unshared":
        return "unshared"
    sharing, reason = choose_sharing(model)
    if sharing == "unshared" and config.sharing == "shared":
        raise AfzalError("sharing=shared is not possible with this model", why=reason, remedy="sharing=auto")
    return sharing


def _reference(
    config: TrainConfig,
    model: Any,
    prepared: Prepared,
    layout: Layout,
    autocast: Callable[[], AbstractContextManager[Any]],
    run: runs.Run,
) -> Reference:
    assert isinstance(config, ReferenceConfig)
    fresh = config.lora_rank is not None
    if config.reference in ("frozen", "adapter_off"):
        return live_reference(model, fresh_adapter=fresh)
    if config.reference != "cached":
        other = load_model(config.reference, device=layout.device).requires_grad_(False)
        if layout.sharing == "shared" and choose_sharing(other)[0] != "shared":
            raise AfzalError(f"reference {config.reference} cannot share prompts", remedy="sharing=unshared")
        return Frozen(other, name=f"the model {config.reference}")
    folder = Path(config.reference_cache) if config.reference_cache else run.path / "reference"
    trees = [*prepared.train, *prepared.evaluation, *prepared.train_mismatched, *prepared.evaluation_mismatched]
    key = cache_key(model, sharing=layout.sharing, autocast=_dtype(config, layout.device), fresh_adapter=fresh)
    live = AdapterOff(model) if fresh else Frozen(model)
    with autocast(), torch.no_grad():
        return cached(
            live, trees, folder, key=key, sharing=layout.sharing, budget=layout.tokens_per_forward, device=layout.device
        )


def _dtype(config: TrainConfig, device: torch.device) -> str:
    """What ``auto`` comes to: bf16 on a GPU that has it, else fp32."""
    if config.dtype != "auto":
        return config.dtype
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def _autocast(config: TrainConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The forward pass in the chosen number format; weights and sums stay float32."""
    if _dtype(config, device) == "bf16":
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return nullcontext


def _hooks(
    config: TrainConfig, run: runs.Run, setup: Setup, watch: Watch, reporter: Reporter, stop: StopSignals
) -> Hooks:
    batches = setup.feed.layout.batches(setup.prepared.evaluation)
    mismatched = setup.feed.layout.batches(setup.prepared.evaluation_mismatched)
    method = setup.method
    reference = Remembered(method.reference) if method.reference else None

    def look(step: int) -> dict[str, float]:
        if not batches:
            return {}
        found = evaluate(setup.model, reference, method.objective, method.parameters, batches, mismatched)
        return {"n": float(len(setup.prepared.evaluation)), **found, **watch.look(step)}

    def log(record: dict[str, Any]) -> None:
        run.log(record)
        reporter.record(record)

    def save(state: State) -> None:
        _save(run, setup, state, run.checkpoints, config.keep_checkpoints)

    def improved(state: State) -> None:
        if setup.settings.patience:
            _save(run, setup, state, run.path / "best", 1)

    return Hooks(log, look if batches else None, save, improved, lambda: stop.requested)


def _save(run: runs.Run, setup: Setup, state: State, folder: Path, keep: int) -> None:
    parameters = trainable(setup.model)
    tensors = {
        "model": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer_tensors(setup.optimizer, parameters),
        "random": {"torch": torch.get_rng_state()},
    }
    checkpoint.save(folder, state.step, tensors, {**asdict(state), "metrics_bytes": run.metrics_bytes()})
    checkpoint.prune(folder, keep)
    run.update(step=state.step)


def _restore(run: runs.Run, setup: Setup, folder: Path | None = None) -> State:
    """The newest sound checkpoint's weights, optimiser and generators; the start, when there is none yet."""
    notes: list[str] = []
    path = checkpoint.newest(folder or run.checkpoints, notes.append)
    for note in notes:
        Reporter(0).say(f"warning: {note}")
    if path is None:
        run.truncate_metrics(0)
        return State()
    tensors, found = checkpoint.load(path)
    run.truncate_metrics(found.pop("metrics_bytes"))
    _load_weights(setup.model, tensors["model"])
    load_optimizer_tensors(setup.optimizer, trainable(setup.model), tensors["optimizer"])
    torch.set_rng_state(tensors["random"]["torch"])
    return State(**found)


def _load_weights(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[name])


def _check_first_loss(setup: Setup, say: Callable[[str], None]) -> None:
    """Where policy equals reference the loss has a known value; anything else means a wrong reference."""
    method = setup.method
    expected = method.objective.at_reference(method.parameters)
    if expected is None or method.reference is None or method.reference.name.startswith("the model "):
        return
    update = setup.feed.update(0)
    with setup.settings.autocast():
        found = evaluate(
            setup.model, method.reference, method.objective, method.parameters, update.batches, update.mismatched
        )["loss"]
    if not abs(found - expected) <= 1e-3 * max(1.0, abs(expected)):
        raise AfzalError(
            f"the first loss is {found:.4f}, but {method.objective.name} starts at {expected:.4f}",
            why=f"policy and reference ({method.reference.name}) do not agree before any training",
            remedy="delete a stale reference cache, or report this as a bug with --debug output",
        )
    say(f"first loss {found:.4f}, as it must be where policy equals reference ({expected:.4f})")


def _announce(config: TrainConfig, run: runs.Run, setup: Setup, prepared: Prepared) -> None:
    parameters = trainable(setup.model)
    method, reference = setup.method, setup.method.reference
    run.update(
        method=config.method,
        config=config.model_dump(mode="json"),
        seed=config.seed,
        steps=setup.settings.steps,
        model={
            "path": config.model,
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "trainable": sum(p.numel() for p in parameters.values()),
            "architecture": type(setup.model).__name__,
        },
        reference=reference.name if reference else "none",
        data=prepared.facts,
        objective={
            "name": method.objective.name,
            "params": dict(method.parameters),
            "at_reference": method.objective.at_reference(method.parameters),
        },
        sharing=setup.feed.layout.sharing,
        chat=prepared.chat,
        status="running",
    )


def _banner(config: TrainConfig, run: runs.Run, setup: Setup, prepared: Prepared, state: State) -> list[str]:
    model, reference = run.facts()["model"], setup.method.reference
    lines = [
        f"{config.method} on {model['architecture']}: {model['trainable']:,} of {model['parameters']:,} weights train",
        *_data_lines(config, prepared, setup.settings.steps),
        f"prompts {setup.feed.layout.sharing}" + (f"; reference: {reference.name}" if reference else ""),
    ]
    return [*lines, f"resuming after step {state.step}"] if state.step else lines


def _data_lines(config: TrainConfig, prepared: Prepared, steps: int) -> list[str]:
    facts = prepared.facts
    lost = ", ".join(f"{n} {reason}" for part in ("dropped", "parts", "cut") for reason, n in facts[part].items())
    tokens = sum(t.n_tokens for t in prepared.train)
    return [
        f"data: {facts['rows']} rows as {facts['format']}, {facts['train']} to train on, {facts['eval']} held out"
        + (f" ({lost}; see losses.jsonl)" if lost else ""),
        f"{steps} updates of {config.batch_size} items, {tokens:,} tokens per epoch",
        *(f"note: {note}" for note in prepared.notes),
    ]


def _keep_best(run: runs.Run, setup: Setup, state: State, watch: Watch) -> None:
    """After an early stop: the weights of the lowest held-out loss, and what they say."""
    path = checkpoint.newest(run.path / "best", lambda note: None)
    if path is not None:
        _load_weights(setup.model, checkpoint.load(path)[0]["model"])
        watch.look(state.best_step)
    reason = f"held-out loss did not improve; kept the weights of step {state.best_step}"
    run.update(stop_reason=reason, kept_step=state.best_step)


def _finish(run: runs.Run, setup: Setup, prepared: Prepared, state: State) -> Path:
    _remember_stop_ids(setup.model, prepared)
    save_model(setup.model, prepared.tokenizer, run.path)
    run.update(status="finished", finished=_now(), seconds=round(state.seconds, 3))
    report.write_card(run.path)
    report.build(run.path)
    return run.path


def _remember_stop_ids(model: Any, prepared: Prepared) -> None:
    """Plain `transformers` generation from the saved folder then stops where the responses were trained to."""
    if model.generation_config is not None:
        model.generation_config.eos_token_id = stop_ids(model, prepared)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def plan(config: TrainConfig) -> list[str]:
    """What a run would do, from the data alone: rows and where they went, updates, tokens. Loads no model."""
    prepared = prepare(config)
    feed = Feed(prepared.train, (), config.batch_size, config.seed, Layout("shared", config.tokens_per_forward))
    return _data_lines(config, prepared, _steps(config, feed))
