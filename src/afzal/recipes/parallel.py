"""Runs over several ranks: refused settings, sharded loading, and console output from one rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from afzal import runs
from afzal.config import TrainConfig
from afzal.errors import AfzalError
from afzal.folders.lazy_weights import LazyWeights
from afzal.model.adapters import is_factor, is_of_adapter, why_reads_base
from afzal.model.load import blank_model, load_model, model_folder
from afzal.model.reference import Frozen, Reference
from afzal.model.reward import blank_reward_model, load_reward_model
from afzal.model.sanity import not_finite, refuse_fault, refuse_silent
from afzal.model.value import Critic
from afzal.records import Turns
from afzal.rewards.source import Columns, Loaders, Rewarder
from afzal.runs import torchrun
from afzal.runs.torchrun import world_size
from afzal.terminal.console import VisibleConsole
from afzal.tokens.batch import Sharing
from afzal.train import ranks
from afzal.train.dtensor import local
from afzal.train.feed import Layout
from afzal.train.loop import State
from afzal.train.optim import trainable
from afzal.train.precision import Dtype, Weights
from afzal.train.progress import Reporter
from afzal.train.shard import Sharded, gathered, is_in_pieces, read_frozen, reshard, shard, start_adapter_in_pieces


def refuse(config: TrainConfig, model: Any) -> None:
    """Make sure that several ranks, if there are several, give the same result as one.

    Raises:
        AfzalError: that is not known to hold for a setting.
    """
    members = config.tensor_parallel
    if world_size() % members:
        raise AfzalError(
            f"tensor_parallel={members} does not divide the number of ranks, {world_size()}",
            remedy=f"start it with torchrun --nproc-per-node {members}, or leave it out",
        )
    if world_size() < 2:
        return
    for what, (is_set, why, remedy) in _refused(config, model).items():
        if is_set:
            what = f"{what} cannot be trained over {world_size()} ranks"
            raise AfzalError(what, why=why, remedy=remedy or "run it without torchrun")


def _refused(config: TrainConfig, model: Any) -> dict[str, tuple[bool, str, str]]:
    """Settings that several ranks do not support: whether each is used, why it is refused, and a remedy other than one
    process."""
    policy = config.policy
    return {
        f"method={config.method}": (
            config.adaptation is not None,
            "each task computes with separate weights from an inner step, and a sharded layer is gathered from "
            "the single copy that the optimizer updates",
            "",
        ),
        "quantize": (
            policy is not None and policy.quantize is not None,
            "a 4-bit weight is packed bytes with separate scales per block; a shard of the bytes alone has no values",
            "leave quantize out: every rank holds a share of the weights",
        ),
        f"offload={config.offload}": (
            config.offload is not None,
            "it keeps full tensors in host memory, and every rank of a machine would keep a copy of all of them",
            "leave it out, and use more ranks: each holds a smaller share",
        ),
        "compile": (
            config.compile and config.device != "cpu" and torch.cuda.is_available(),
            "on GPUs whole layers are compiled, with the calls that gather their shards, which has never been tested",
            "leave it out",
        ),
        "a model in memory": (
            model is not None,
            "its weights would be sharded in place, and the caller would get a part of the model on every rank",
            "save it with save_pretrained and name the folder",
        ),
    }


def refuse_rounded(model: Any, dtype: Dtype) -> None:
    """Make sure that weights that stay in float32 in one process do so in several.

    Raises:
        AfzalError: they would be rounded when gathered.
    """
    if world_size() < 2 or dtype != "bf16" or not any(map(is_factor, trainable(model))):
        return
    raise AfzalError(
        f"an adapter of IA3 or DoRA cannot be trained over {world_size()} ranks in bf16",
        why="its factors and norms stay in float32, and a sharded layer is gathered in a single number format",
        remedy="dtype=fp32, or run it without torchrun",
    )


def is_restart(out: str) -> bool:
    """Whether ``torchrun`` has restarted the ranks and there is a run to resume, which this launch started."""
    facts = Path(out) / "run.json"
    if not facts.is_file():
        return False
    return torchrun.restarts() > 0 or torchrun.run_id() == runs.read_json(facts).get("launch")


_SMALLER = "memory.json"


def remember_smaller(out: Path, tokens_per_forward: int) -> None:
    """Record for the next start of all ranks that this one ran out of memory."""
    runs.atomic_write(out / _SMALLER, json.dumps({"tokens_per_forward": tokens_per_forward}) + "\n")


def fewer_tokens(run: runs.Run, layout: Layout, state: State) -> list[str]:
    """Use smaller passes if a rank ran out of memory before this start; returns a line to print."""
    path = run.path / _SMALLER
    tokens = ranks.agreed(runs.read_json(path)["tokens_per_forward"] if path.is_file() else 0)
    if not tokens or tokens >= (state.tokens_per_forward or layout.tokens_per_forward):
        return []
    state.tokens_per_forward = tokens
    run.log({"kind": "memory", "step": state.step, "tokens_per_forward": tokens})
    return [f"a rank ran out of memory: from now on {tokens} tokens per forward pass"]


def forget_smaller(out: Path) -> None:
    """Remove the note of :func:`remember_smaller`."""
    (out / _SMALLER).unlink(missing_ok=True)


def reporter(steps: int, start: int) -> Reporter:
    """The progress display of a run; only rank 0 prints."""
    return Reporter(steps, start, None if ranks.leads() else VisibleConsole(quiet=True))


def layout(model: Any, sharing: Sharing, tokens_per_forward: int, device: torch.device) -> Layout:
    """The layout of this rank's forward passes."""
    width = getattr(model.config.get_text_config(), "hidden_size", Layout.width)
    return Layout(sharing, tokens_per_forward, device, ranks.data_rank(), ranks.data_world(), width)


def release(*models: Any) -> None:
    """With several ranks, release everything gathered of these models, so that their weights can be changed."""
    if ranks.world() > 1:
        for model in models:
            reshard(model)


def why_unsharded(config: TrainConfig) -> str:
    """Why every one of several ranks must load the full model, according to the settings; empty if it can be read in
    shards."""
    folder = config.policy.adapter_from if config.policy is not None else None
    if folder is not None and (why := why_reads_base(model_folder(folder))):
        return f"the adapter {folder} {why}"
    return ""


@dataclass(frozen=True, slots=True)
class StartingModel:
    """A model to train. Its weights may be ``unread``; else ``why_unsharded`` says why every one of several ranks loads
    them all."""

    model: Any
    unread: LazyWeights | None = None
    why_unsharded: str = ""


def open_blank(blank: Callable[[], tuple[Any, LazyWeights]], why: str = "") -> StartingModel:
    """A model without its weights; ``model`` is None if it must be loaded in full.

    Args:
        blank: builds the model from a folder.
        why: a known reason to load it in full.
    """
    if why:
        return StartingModel(None, None, why)
    try:
        return StartingModel(*blank())
    except AfzalError as error:  # loading the folder in full reports the fault again
        return StartingModel(None, None, error.what)


def read_in_pieces(model: Any, unread: LazyWeights, dtype: Dtype, device: torch.device, path: str) -> Sharded:
    """Shard the model, with each rank reading its own shards, and check that it is sound.

    Raises:
        AfzalError: a weight is not finite, or the forward pass does not work; on all ranks.
    """
    sharded_model = Sharded(model, dtype, device, unread)
    start_adapter_in_pieces(sharded_model.model)
    refuse_unsound_pieces(sharded_model.model, path)
    return sharded_model


def trial_format(weights: Weights | Sharded | None) -> torch.dtype | None:
    """The compute dtype of a model's trial, if it is not that of its weights: a sharded model computes as in training,
    while an unsharded one is tried before it is rounded."""
    return torch.bfloat16 if isinstance(weights, Sharded) and weights.dtype == "bf16" else None


def frozen_model(path: str, dtype: Dtype, device: torch.device) -> Any:
    """Load another model that never trains: sharded if there are several ranks and it can be read so."""
    pieces = _frozen_pieces(partial(blank_model, path), dtype, device, path) if ranks.world() > 1 else None
    return load_model(path, device=device).requires_grad_(False) if pieces is None else pieces


def frozen_policy(path: str, dtype: Dtype, device: torch.device) -> Any:
    """Load a policy that draws answers: sharded as in :func:`frozen_model`, with an adapter in float32.

    Training, which comes next, prints why a model is not sharded.
    """
    candidate = open_blank(partial(blank_model, path)) if ranks.world() > 1 else StartingModel(None)
    if candidate.unread is not None:
        return _read_frozen(candidate, dtype, device, path, keep=is_of_adapter)
    as_loaded = torch.bfloat16 if dtype == "bf16" else torch.float32
    return load_model(path, device=device, dtype=as_loaded).requires_grad_(False)


class Scorers:
    """The models that reward answers. They never train; with several ranks they are sharded, if they can be read so,
    and gathered while they score.

    Tensor parallelism does not cut them, since each rank scores its own answers: their layers are sharded over all
    ranks.
    """

    def __init__(self) -> None:
        self.sharded: list[Any] = []

    @property
    def loaders(self) -> Loaders:
        """Open models in float32, and remember those that are sharded."""
        return Loaders(
            reward=lambda path, device: self._open(blank_reward_model, load_reward_model, path, device),
            language=lambda path, device: self._open(blank_model, load_model, path, device),
        )

    def _open(
        self,
        blank: Callable[[str], tuple[Any, LazyWeights]],
        load: Callable[..., Any],
        path: str,
        device: torch.device,
    ) -> Any:
        pieces = None
        if ranks.world() > 1:
            pieces = _frozen_pieces(partial(blank, path), "fp32", device, path, layers_only=True)
        if pieces is None:
            return load(path, device=device)
        self.sharded.append(pieces)
        return pieces

    def release(self) -> None:
        """Release layers that a trial has gathered."""
        release(*self.sharded)

    def together(self, rewarder: Rewarder) -> Rewarder:
        """The rewarder of these models for calls that all ranks make together, each with answers of its own."""

        def rewards(
            prompts: Sequence[Turns],
            answers: Sequence[str],
            ended: Sequence[bool] | None = None,
            columns: Columns | None = None,
        ) -> list[float]:
            with gathered(*self.sharded):
                return rewarder(prompts, answers, ended, columns)

        return rewards if self.sharded else rewarder


def _frozen_pieces(
    blank: Callable[[], tuple[Any, LazyWeights]],
    dtype: Dtype,
    device: torch.device,
    path: str,
    **how: Any,
) -> Any | None:
    """A sharded model that never trains, checked to be sound; None if it cannot be read in shards.

    Args:
        how: as for :func:`afzal.train.shard.read_frozen`.
    """
    candidate = open_blank(blank)
    if candidate.unread is None:
        report_unsharded(path, candidate.why_unsharded)
        return None
    return _read_frozen(candidate, dtype, device, path, **how)


def _read_frozen(candidate: StartingModel, dtype: Dtype, device: torch.device, path: str, **how: Any) -> Any:
    assert candidate.unread is not None
    model = read_frozen(candidate.model, dtype, device, candidate.unread, **how)
    refuse_unsound_pieces(model, path)
    return model


def report_unsharded(path: str, why: str) -> None:
    """Print a note at the start that every rank holds a full copy of a model."""
    reporter(0, 0).say(f"note: every rank loads all of {path}: {why}")


def refuse_unsound_pieces(model: Any, path: str) -> None:
    """Like :func:`afzal.model.sanity.refuse_unsound`, for a sharded model."""
    faults = ranks.gather(not_finite((name, local(p)) for name, p in model.named_parameters()))
    refuse_fault(next(filter(None, faults), ""), path)
    refuse_silent(model, path)
    release(model)


def sharded(
    weights: Weights | Sharded, critic: Critic | None, device: torch.device, *references: Reference | None
) -> tuple[Weights | Sharded, Critic | None]:
    """With several ranks, shard the model, its value model and the frozen models used with it."""
    if ranks.world() == 1:
        return weights, critic
    if critic is not None and isinstance(critic.weights, Weights):
        critic = replace(critic, weights=_cut(critic.weights, device))
    for reference in references:
        if isinstance(reference, Frozen) and not is_in_pieces(reference.model):
            shard(reference.model, device)
    return weights if isinstance(weights, Sharded) else _cut(weights, device), critic


def _cut(weights: Weights, device: torch.device) -> Sharded:
    weights.restore()
    return Sharded(weights.model, weights.dtype, device)
