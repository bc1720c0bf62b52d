"""One training run, from a configuration to a folder that loads: the same for every method."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from afzal import drops, hub, report, runs, trackers
from afzal.config import TrainConfig
from afzal.errors import AfzalError, Terminated, signal_of
from afzal.hashes import weights_hash
from afzal.model.attention import attention_restored
from afzal.model.load import (
    blank_model,
    load_model,
    pick_device,
    save_model,
    switch_off_dropout,
)
from afzal.model.memory import is_out_of_memory
from afzal.model.norms import fuse_norms
from afzal.model.reference import Frozen, MemoizedReference, move_towards_policy
from afzal.model.reward import save_reward_model
from afzal.prepare import Prepared, prepare
from afzal.recipes import banner, checkpoints, online, outputs, parallel, reward
from afzal.recipes.first_loss import check_first_loss
from afzal.recipes.input_hashes import input_hashes, refuse_changes
from afzal.recipes.memory import LoadedModels, ran_out
from afzal.recipes.references import sync_steps
from afzal.recipes.runtime import fixed_date, other_machine, refuse_runtime, runtime_of
from afzal.recipes.setup import Setup, dtype_of, set_up
from afzal.recipes.tracking import catch_up, tracked
from afzal.recipes.watch import Watch
from afzal.runs import torchrun
from afzal.train import ranks
from afzal.train.callbacks import STOPPED, Callbacks, RunListeners
from afzal.train.evaluate import evaluate
from afzal.train.loop import Hooks, State, due, evaluate_and_log, fit
from afzal.train.method import Carried, Method, forget_gradient
from afzal.train.progress import Reporter
from afzal.train.signals import EXIT_CODES, stop_on_signals
from afzal.train.timer import SaveTimer


def end_of(reason: BaseException) -> dict[str, str]:
    """Status and stop reason of a run that ends with this exception."""
    if isinstance(reason, (KeyboardInterrupt, Terminated)):
        return {"status": "stopped", "stop_reason": signal_of(reason)}
    return {"status": "failed", "stop_reason": f"{type(reason).__name__}: {reason}"}


class Stopped(AfzalError):  # noqa: N818 - a request, not a fault
    """The run was asked to stop and has saved a checkpoint. ``signal`` names the source of the request."""

    def __init__(self, signal: str, path: Path, step: int, remedy: str = "") -> None:
        super().__init__(
            f"stopped by {signal} after step {step}; everything is saved",
            remedy=remedy or f"continue with: afzal train {path}/run.yaml --resume",
        )
        self.signal, self.step = signal, step


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    command: str = "",
    model: Any = None,
    tokenizer: Any = None,
    callbacks: Callbacks | None = None,
) -> Path:
    """Run the training that ``config`` describes and return the run folder.

    Args:
        resume: continue the run in ``config.out`` from its newest sound checkpoint.
        command: the user's command line, for the record.
        model, tokenizer: objects to train instead of ``config.model``; the reference is then made from these weights.
        callbacks: called during training.

    Raises:
        AfzalError: a fault in the input or the setup; :class:`Stopped` if a signal ended the run early.

    Under ``torchrun`` all ranks call this in the same way; they train one model together, and rank 0 writes the folder.
    If they are restarted after a rank died, they resume the run.
    """
    parallel.refuse(config, model)
    if config.push_to_hub is not None:
        hub.refuse_unreachable(config.push_to_hub)
    trackers.refuse_unready(config.report_to or ())
    device = pick_device(ranks.own_device(config.device))
    with ranks.joined(device, config.tensor_parallel):
        # ask all ranks: a machine that came back does not know of the restart
        resume = any(ranks.gather(resume or parallel.is_restart(config.out)))
        with fixed_date(Path(config.out) / "run.json", resume) as date:
            return _joined(config, resume, command, date, model, tokenizer, callbacks or Callbacks())


def _joined(
    config: TrainConfig, resume: bool, command: str, date: str, model: Any, tokenizer: Any, callbacks: Callbacks
) -> Path:
    prepared = prepare(config, model=model, tokenizer=tokenizer)
    ranks.same("training data", prepared.facts["fingerprint"])
    ranks.same("setting", config.model_dump(mode="json"))
    run = _open(config, prepared, model, resume)
    if resume and outputs.is_done(run):
        with run:
            ranks.led(lambda: outputs.clean_up(config, run))
            ranks.led(lambda: outputs.upload(config, run))
            catch_up(config, run, parallel.reporter(0, 0).say)
        parallel.reporter(0, 0).say(f"{run.path} has finished: there is nothing left to do")
        return run.path
    facts = {"command": command, "launch": torchrun.run_id()}
    run.update(template_date=date, **{name: value for name, value in facts.items() if value})
    restored = nullcontext() if model is None else attention_restored(model)
    signals = stop_on_signals()
    with run, restored, ExitStack() as cleanup:
        cleanup.callback(signals.leave)
        try:
            return _train(config, run, prepared, model, RunListeners(signals, callbacks), resume)
        except Stopped:
            raise
        except BaseException as error:
            with suppress(AfzalError):  # on a full disk even this may fail; the first error is the one to report
                run.update(**end_of(ranks.cause(error)), finished=_now())
            raise


def _train(
    config: TrainConfig, run: runs.Run, prepared: Prepared, model: Any, audience: RunListeners, resume: bool
) -> Path:
    torch.manual_seed(config.seed)
    device = pick_device(ranks.own_device(config.device))
    input_dtype = outputs.input_format(config.model, model)
    if model is not None:
        switch_off_dropout(model.to(device).eval())
        fuse_norms(model)
    setup = set_up(config, prepared, _open_model(config, prepared, device, model), device, run)
    setup = replace(setup, save_dtype=outputs.saved_format(config, setup.model, input_dtype))
    try:
        return _run(config, run, setup, audience, resume)
    finally:
        setup.weights.restore()


def _open_model(config: TrainConfig, prepared: Prepared, device: torch.device, model: Any) -> parallel.StartingModel:
    """The model to train; with several ranks without its weights, if each rank can read its own shards."""
    if config.scorer is not None:
        return reward.start(config, config.scorer, prepared, device, model)
    if model is not None or ranks.world() == 1:
        return parallel.StartingModel(_starting_model(config, device) if model is None else model)
    starting = parallel.open_blank(partial(blank_model, config.model), parallel.why_unsharded(config))
    return starting if starting.unread is not None else replace(starting, model=_starting_model(config, device))


def _starting_model(config: TrainConfig, device: torch.device) -> Any:
    """The model in float32; under quantize, unquantised layers are in the compute dtype."""
    quantize = config.policy.quantize if config.policy is not None else None
    low = quantize is not None and dtype_of(config, device) == "bf16"
    return load_model(config.model, device=device, dtype=torch.bfloat16 if low else torch.float32, quantize=quantize)


def _run(config: TrainConfig, run: runs.Run, setup: Setup, audience: RunListeners, resume: bool) -> Path:
    prepared = setup.prepared
    runtime = runtime_of(config, setup)
    if resume:
        refuse_runtime(run, runtime)
    state = checkpoints.restore(run, setup) if resume else State()
    start_lines = [banner.resume_line(run, state), *other_machine(run, runtime)] if resume else []
    start_lines += parallel.fewer_tokens(run, setup.feed.layout, state) if resume else []
    if config.tokens_per_forward is None:  # the first measurement holds, whatever memory is free when a run is resumed
        state.tokens_per_forward = state.tokens_per_forward or setup.feed.layout.tokens_per_forward
    _announce(config, run, setup, prepared, runtime)
    watch = Watch.make(config, setup.model, prepared, setup.start, setup.feed.layout, run.path)
    progress = parallel.reporter(setup.settings.steps, state.step)
    with progress as reporter, tracked(config, run, reporter.say) as relay:
        for line in banner.banner(config, run, setup, prepared, start_lines) if ranks.leads() else ():
            reporter.say(line)
        hooks = _hooks(config, run, setup, watch, reporter, replace(audience, relay=relay))
        checkpoints.require_room(config, run, setup)
        if state.step == 0:
            check_first_loss(setup, reporter.say)
        audience.signals.listen()  # until here a signal ends the command at once: there is nothing to save
        reason = _fit(config, setup, hooks, state)
        if reason == STOPPED and not due(state.step, setup.settings.eval_every_steps):
            evaluate_and_log(hooks, state)  # the loop has not evaluated at this step
        relay.complete = reason not in EXIT_CODES
    run.update(step=state.step, seconds=round(state.seconds, 3), stop_reason=reason)
    if reason in EXIT_CODES:
        run.update(status="stopped", finished=_now())
        raise Stopped(reason, run.path, state.step)
    if reason == STOPPED:
        run.update(stop_reason=f"stopped by {'; '.join(audience.callbacks.stop_requests) or STOPPED}")
    if reason == "early":
        _keep_best(run, setup, state, watch)
    return _finish(config, run, setup, state)


def _fit(config: TrainConfig, setup: Setup, hooks: Hooks, state: State) -> str:
    """Run the loop and return why it stopped. If memory runs out for good, report it term by term."""
    layout = setup.feed.layout
    layout.tokens_per_forward = state.tokens_per_forward or layout.tokens_per_forward
    parts = (setup.model, setup.method, setup.feed, setup.optimizer, setup.settings)
    try:
        return fit(*parts, hooks=hooks, state=state, weights=setup.weights, gradient=setup.gradient)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).strip().partition("\n")[0]
    # outside the except block, so that nothing holds the tensors of the failed pass
    forget_gradient(setup.weights, setup.method)
    models = LoadedModels(setup.weights, setup.reference, setup.method.critic, setup.start)
    error = ran_out(config, setup.prepared, models, layout, message)
    if ranks.world() == 1:
        raise error
    restart = "--resume, or torchrun --max-restarts, restarts all ranks with passes of half the size"
    raise AfzalError(error.what, why=error.why, remedy=f"{restart}; or {error.remedy}")


def _open(config: TrainConfig, prepared: Prepared, model: Any, resume: bool) -> runs.Run:
    """The run's folder, created or opened by rank 0; other ranks only read it."""
    ranks.led(lambda: _begin(config, prepared, model, resume))
    return runs.Run(Path(config.out), writes=ranks.leads())


def _begin(config: TrainConfig, prepared: Prepared, model: Any, resume: bool) -> None:
    settings = config.model_dump(mode="json")
    inputs = input_hashes(config) | ({} if model is None else {"model": weights_hash(model)})
    run = runs.resume(config.out) if resume else runs.create(config.out, settings)
    if resume:
        fingerprints = {
            "fingerprint": ("data: the content of the training data", prepared.facts["fingerprint"]),
            "tokens": ("tokens: what the data becomes (tokenizer, chat template, versions)", prepared.facts["tokens"]),
            "columns": ("columns: the row fields that functions read", prepared.facts.get("columns", "")),
        }
        refuse_changes(run, settings, inputs, fingerprints)
        if outputs.is_done(run):
            return
        run.update(status="running")
    run.update(files=inputs)
    dropped = runs.redact_texts([drop.line() for drop in prepared.dropped])
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in dropped)
    runs.atomic_write(run.path / drops.FILE, lines)
    runs.atomic_write(
        run.path / "data.json", json.dumps(runs.redact_texts(prepared.audit), indent=2, default=str) + "\n"
    )


def _hooks(
    config: TrainConfig, run: runs.Run, setup: Setup, watch: Watch, reporter: Reporter, audience: RunListeners
) -> Hooks:
    # prompts alone are not batches: a policy that answers them is evaluated differently
    batches = [] if setup.evaluate_policy else setup.feed.layout.local_batches(setup.prepared.evaluation)[0]
    mismatched = setup.feed.layout.local_batches(setup.prepared.evaluation_mismatched)[0]
    follows = sync_steps(config)
    reference, method = setup.reference, setup.method
    if method.reference:
        # against a reference that follows it, a policy seems unmoved after every move: compare it with the start
        judge = setup.start if follows and batches else method.reference
        # logits of the reference are not remembered
        method = replace(method, reference=judge if method.statistics else MemoizedReference(judge))

    def look(step: int, carried: Carried) -> dict[str, float]:
        if setup.evaluate_policy is not None:
            return {**watch.measure(step), **setup.evaluate_policy()}
        figures = evaluate(setup.model, method, batches, mismatched, carried)
        return {"n": float(len(setup.prepared.evaluation)), **figures, **watch.measure(step)}

    alarms = online.Alarms(reporter.say, run.metrics("rollout"), config)

    def log(record: dict[str, Any]) -> None:
        run.log(record)
        reporter.record(record)
        alarms.receive(record)
        audience.receive(record, setup.settings.steps, run.path)

    timer = SaveTimer(60 * config.save_every_minutes or math.inf)

    def save(state: State) -> None:
        checkpoints.save(run, setup, state, run.checkpoints, outputs.kept_checkpoints(config))
        timer.saved()

    def improved(state: State) -> None:
        if setup.settings.patience:
            checkpoints.save(run, setup, state, run.path / "best", 1)

    def stepped(step: int) -> None:
        if follows and step % follows == 0:
            assert config.referenced is not None
            assert isinstance(reference, Frozen)
            parallel.release(setup.model, reference.model)
            move_towards_policy(reference, setup.model, config.referenced.reference_mixup)

    def stopped() -> str | None:
        # a signal reaches ranks at different steps, and must stop all of them at the same step
        return ranks.first(audience.requested())

    evaluated = look if setup.prepared.evaluation else None
    restart_with = partial(parallel.remember_smaller, run.path)
    return Hooks(log, evaluated, save, improved, stopped, stepped, reporter.say, timer.due, restart_with)


def _announce(config: TrainConfig, run: runs.Run, setup: Setup, prepared: Prepared, runtime: dict[str, Any]) -> None:
    parameters = setup.weights.masters
    method, reference = setup.method, setup.reference
    run.update(
        method=config.method,
        config=config.model_dump(mode="json"),
        seed=config.seed,
        steps=setup.settings.steps,
        model={
            "path": config.model,
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "trainable": sum(p.numel() for p in parameters.values()),
            "architecture": setup.architecture,
            "adapter": config.adapter_kind or "none",
            "saved_as": outputs.format_name(setup.save_dtype),
        },
        reference=reference.name if reference else "none",
        reference_is_start=reference.is_start if reference else None,
        reference_moves=setup.reference_moves,
        starts_at_reference=bool(
            reference and reference.is_start and not setup.starts_elsewhere and config.adaptation is None
        ),
        data=prepared.facts,
        objective={
            "name": method.name,
            "unit": method.main.objective.unit,
            "params": _parameters(method),
            "at_reference": method.at_reference(),
        },
        sharing=setup.feed.layout.sharing,
        runtime=runtime,
        chat=prepared.chat,
        status="running",
    )


def _parameters(method: Method) -> dict[str, Any]:
    """Parameters of all terms; with several terms, as ``term.parameter``."""
    if len(method.terms) == 1:
        return dict(method.terms[0].parameters)
    return {f"{term.name}.{key}": value for term in method.terms for key, value in term.parameters.items()}


def _keep_best(run: runs.Run, setup: Setup, state: State, watch: Watch) -> None:
    """After an early stop: restore the weights with the lowest held-out loss, and sample from them."""
    if checkpoints.best(run, setup):
        watch.measure(state.best_step)
    reason = f"held-out loss did not improve; kept the weights of step {state.best_step}"
    run.update(stop_reason=reason, kept_step=state.best_step)


def _finish(config: TrainConfig, run: runs.Run, setup: Setup, state: State) -> Path:
    sections: Sequence[report.Section] = ()
    shift = 0.0
    if config.scorer is not None:  # in the number format of training, like every evaluation
        sections, shift = reward.assess_held_out(config.scorer, run, setup.model, setup.prepared, setup.feed.layout)
    setup.weights.restore()
    if setup.method.learned:
        method = setup.method
        learned = {
            f"{t.name}.{k}": float(v.detach()) for t in method.terms for k, v in method.learned_values(t).items()
        }
        run.update(learned=learned)
    model = setup.unsharded_model(run.path)

    def write() -> None:
        rounded = partial(outputs.written_as, dtype=setup.save_dtype)
        if config.scorer is not None:
            save_reward_model(model, setup.prepared.speaker.files, run.path, shift=shift, rounded=rounded)
        else:
            _remember_stop_ids(model, setup.prepared)
            with rounded(model):
                save_model(model, setup.prepared.speaker.files, run.path)
        runs.force_to_disk(run.path)  # on disk, not only in a cache, when run.json says finished
        run.update(status="finished", finished=_now(), seconds=round(state.seconds, 3))
        report.write_card(run.path)
        report.build(run.path, sections)
        outputs.clean_up(config, run)
        outputs.upload(config, run)

    ranks.led(write)
    return run.path


def _remember_stop_ids(model: Any, prepared: Prepared) -> None:
    """Make plain `transformers` generation from the saved folder stop where the responses were trained to stop."""
    if model.generation_config is not None:
        model.generation_config.eos_token_id = prepared.ends


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
