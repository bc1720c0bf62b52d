"""A run over several ranks: what it refuses, how its model is cut, and who speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from afzal.config import TrainConfig
from afzal.errors import AfzalError
from afzal.model.reference import Frozen, Reference
from afzal.runs import launched
from afzal.runs.launched import processes
from afzal.terminal.console import VisibleConsole
from afzal.tokens.batch import Sharing
from afzal.train import ranks
from afzal.train.feed import Layout
from afzal.train.precision import Weights
from afzal.train.progress import Reporter
from afzal.train.shard import Sharded, reshard, shard_frozen

_VIRTUAL = ("prefix", "prompt", "p_tuning")
_FACTORS = ("ia3", "dora")


def refuse(config: TrainConfig, model: Any) -> None:
    """Make sure that several ranks, if there are several, give what one would.

    Raises:
        AfzalError: a setting for which that is not known to hold.
    """
    if processes() < 2:
        return
    kind = config.adapter_kind
    found = {
        f"method={config.method}": config.rollouts is not None or config.adaptation is not None,
        "adapter_from": config.policy is not None and config.policy.adapter_from is not None,
        f"adapter={kind}": kind in (*_VIRTUAL, *_FACTORS),
        "quantize": config.policy is not None and config.policy.quantize is not None,
        "constraint": config.constrained is not None,
        "compile": config.compile,
        f"offload={config.offload}": config.offload is not None,
        "a model in memory": model is not None,
    }
    for what, wanted in found.items():
        if wanted:
            raise AfzalError(f"{what} cannot be trained over {processes()} ranks", remedy="run it without torchrun")


def goes_on(out: str) -> bool:
    """Whether ``torchrun`` has started the ranks again and there is a run to resume."""
    return launched.restarts() > 0 and (Path(out) / "run.json").is_file()


def reporter(steps: int, start: int) -> Reporter:
    """What shows the run to a person; of several ranks the first alone speaks."""
    return Reporter(steps, start, None if ranks.leads() else VisibleConsole(quiet=True))


def layout(model: Any, sharing: Sharing, tokens_per_forward: int, device: torch.device) -> Layout:
    """How this rank's trees become forward passes."""
    width = getattr(model.config.get_text_config(), "hidden_size", Layout.width)
    return Layout(sharing, tokens_per_forward, device, ranks.rank(), ranks.world(), width)


def let_go(*models: Any) -> None:
    """With several ranks, keep nothing of these models gathered, so that their weights can be written to."""
    if ranks.world() > 1:
        for model in models:
            reshard(model)


def why_whole(config: TrainConfig) -> str:
    """Why the model of a run over several ranks is loaded whole by each of them; empty where it can be read in pieces,
    as far as the settings say."""
    if config.scorer is not None:
        return "it gets a head for scores"
    if config.rollouts is not None or config.adaptation is not None:
        return f"method={config.method}"
    if config.adapter_kind not in (None, "lora", "rslora"):
        return f"adapter={config.adapter_kind} is made of its weights"
    return "reference=cached" if config.referenced is not None and config.referenced.reference == "cached" else ""


def opened(path: str, why: str = "") -> tuple[Any, Unread | None, str]:
    """The model of a folder without its weights, and where they are; or None and why it has to be loaded whole."""
    if why:
        return None, None, why
    try:
        return *blank_model(path), ""
    except AfzalError as error:  # what is wrong with a folder is said again, in full, when it is loaded
        return None, None, error.what


def read_in_pieces(model: Any, unread: Unread, dtype: Dtype, device: torch.device, path: str) -> Sharded:
    """The model in pieces, of which each rank has read its own, found sound.

    Raises:
        AfzalError: a weight is not finite, or the forward pass does not work; on all ranks.
    """
    made = Sharded(model, dtype, device, unread)
    refuse_unsound_pieces(made.model, path)
    return made


def frozen_in_pieces(path: str, dtype: Dtype, device: torch.device) -> tuple[Any, str]:
    """Another model that never trains, read in pieces; or None, and why not."""
    model, unread, why = opened(path)
    if unread is None:
        return None, why
    model.requires_grad_(False)
    made = Sharded(model, dtype, device, unread)
    refuse_unsound_pieces(made.model, path)
    return made.model, ""


def refuse_unsound_pieces(model: Any, path: str) -> None:
    """As :func:`afzal.model.sound.refuse_unsound`, of a model in pieces."""
    faults = ranks.gather(not_finite((name, local(p)) for name, p in model.named_parameters()))
    if fault := next(filter(None, faults), ""):
        raise AfzalError(f"the weights in {path} are not all numbers: {fault}", remedy=EARLIER)
    refuse_silent(model, path)


def sharded(weights: Weights | Sharded, device: torch.device, *others: Reference | None) -> Weights | Sharded:
    """With several ranks, the model and the frozen models beside it in pieces."""
    if ranks.world() == 1 or isinstance(weights, Sharded):
        return weights
    for other in others:
        if isinstance(other, Frozen):
            shard_frozen(other.model, device)
    weights.restore()
    return Sharded(weights.model, weights.dtype, device)
