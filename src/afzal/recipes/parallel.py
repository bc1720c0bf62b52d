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


def sharded(weights: Weights, *others: Reference | None) -> Weights | Sharded:
    """With several ranks, the model and the frozen models beside it in pieces."""
    if ranks.world() == 1:
        return weights
    for other in others:
        if isinstance(other, Frozen):
            shard_frozen(other.model)
    weights.restore()
    return Sharded(weights.model, weights.dtype)
