"""Outputs of a finished run: weights in the requested number format, and no checkpoints unless requested."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from afzal import hub, runs
from afzal.config import TrainConfig
from afzal.folders.inspection import weight_format
from afzal.folders.load import model_folder
from afzal.model.adapters import adapter_base, is_adapted
from afzal.model.load import cast_parameters
from afzal.model.reward import is_reward_model
from afzal.recipes import parallel
from afzal.train import checkpoint

# by their names in safetensors files
_FORMATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_REMOVED = ".removed"
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def input_format(path: str, model: Any = None) -> torch.dtype:
    """The number format of most of a model's weights, in its files or in memory if ``model`` is given.

    For an adapter folder, that of its base model; float32 if the files hold something else.
    """
    if model is not None:
        sizes: dict[torch.dtype, int] = {}
        for p in model.parameters():
            sizes[p.dtype] = sizes.get(p.dtype, 0) + p.numel()
        return max(sizes, key=lambda dtype: sizes[dtype])
    folder = model_folder(path)
    base = adapter_base(folder)
    return _FORMATS.get(weight_format(model_folder(base) if base else folder), torch.float32)


def saved_format(config: TrainConfig, model: Any, input_dtype: torch.dtype) -> torch.dtype:
    """The number format that a run's weights are saved in.

    Under ``auto`` it is ``input_dtype``. Adapters, which are small, stay in float32; so do weights that float16 cannot
    hold.
    """
    if config.save_dtype != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.save_dtype]
    if is_adapted(model) and not is_reward_model(model):
        return torch.float32
    if input_dtype == torch.float16 and any(
        p.detach().abs().max() > torch.finfo(torch.float16).max for p in model.parameters()
    ):
        return torch.float32
    return input_dtype


@contextmanager
def written_as(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Cast the weights to this number format in host memory inside the block; restore them at the end.

    A reward model's head stays in float32, since its scores are differences of large sums.
    """
    if dtype == torch.float32:
        yield
        return
    before: list[tuple[nn.Parameter, torch.Tensor]] = [(p, p.data) for p in model.parameters()]
    try:
        for p, _ in before:
            p.data = p.data if p.is_meta else p.data.to("cpu")  # weights on the meta device are not written
        cast_as_saved(model, dtype)
        yield
    finally:
        for p, value in before:
            p.data = value


def cast_as_saved(model: Any, dtype: torch.dtype) -> None:
    """Cast the weights in place to the number formats in which :func:`written_as` saves them under ``dtype``."""
    if dtype != torch.float32:
        cast_parameters(model, dtype, keep=_is_head if is_reward_model(model) else lambda name: False)


def format_name(dtype: torch.dtype) -> str:
    """The format's name in settings."""
    return _NAMES[dtype]


def kept_checkpoints(config: TrainConfig) -> int:
    """The number of checkpoints kept during a run."""
    return config.keep_checkpoints if config.keep_checkpoints is not None else 2


def clean_up(config: TrainConfig, run: runs.Run) -> None:
    """Once model and report are written, remove what only a resumed run would need.

    Checkpoints stay if ``keep_checkpoints`` is given. They are renamed before they are removed, so a run killed here
    has either all of them or none.
    """
    removed = run.path / _REMOVED
    parallel.forget_smaller(run.path)
    if config.keep_checkpoints is None and run.checkpoints.is_dir():
        shutil.rmtree(removed, ignore_errors=True)
        run.checkpoints.rename(removed)
    for folder in (removed, run.path / "best"):
        if folder.is_dir():
            shutil.rmtree(folder)


def upload(config: TrainConfig, run: runs.Run) -> None:
    """Upload the finished model, once, if ``push_to_hub`` names a repository; the run records where.

    Raises:
        AfzalError: the hub refuses or cannot be reached. The run stays finished.
    """
    if config.push_to_hub is None or run.facts().get("uploaded"):
        return
    run.update(uploaded=hub.push(run.path, config.push_to_hub, private=not config.hub_public))


def is_done(run: runs.Run) -> bool:
    """Whether a run has finished, including its report, and removed its checkpoints, so nothing is left to resume."""
    finished = run.facts().get("status") == "finished" and (run.path / "report.html").exists()
    return finished and not checkpoint.listed(run.checkpoints)


def _is_head(name: str) -> bool:
    return "score." in name
