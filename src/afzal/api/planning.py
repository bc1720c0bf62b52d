"""Memory, time and cost of a run before it starts: the function behind ``afzal plan``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from afzal.api.inputs import settings_of
from afzal.api.results import Result
from afzal.errors import AfzalError

if TYPE_CHECKING:
    import numpy as np

    from afzal.config import PlanConfig
    from afzal.plan import Assumptions, Device, Job, LayoutRequest, Method, Plan, Shape


def plan(method: str = "dpo", /, **settings: Any) -> Result:
    """Estimate what a training run needs, and on which layout it fits: memory by term, compute, traffic, time, cost.

    The model's configuration is enough; no weights are read.

    Args:
        method: the method to train with.
        settings: as on the command line: ``model``, ``data``, ``lora_rank``, ``hardware``, ``memory_gb`` (GB), ...

    Returns:
        The plan (bytes, seconds, FLOPs); not ``ok`` if it does not fit.

    Raises:
        AfzalError: a setting is unknown or has no effect, or the model's shape cannot be read.

    Example:
        >>> result = afzal.api.plan("dpo", model="llama-3.1-8b", lora_rank=16)
        >>> result.ok, result["trained_parameters"]
        (True, 41943040)
    """
    from afzal.config import PlanConfig

    return planned(settings_of(PlanConfig, {"method": method, **settings}))[0]


def planned(settings: PlanConfig) -> tuple[Result, Job, Plan, Device]:
    """The result of planning, with the job, the chosen plan and the device."""
    from afzal import plan

    device = device_of(settings)
    job = job_of(settings, device)
    chosen = plan.plan(job, device, wish_of(settings), assumptions_of(settings), price=settings.price)
    return Result(plan.as_data(chosen), list(plan.lines(chosen)), ok=chosen.fits), job, chosen, device


def job_of(settings: PlanConfig, device: Device) -> Job:
    """The settings' model, method and data."""
    from afzal import plan

    method = plan.METHODS[settings.method]
    shape = plan.shape_from(settings.model)
    _refuse_uncut(settings, shape)
    shared = settings.sharing == "shared"
    dtype = settings.dtype if settings.dtype != "auto" else "fp32" if device.name == "cpu" else "bf16"
    return plan.Job(
        shape=shape,
        method=method,
        lengths=plan.lengths(_counts(settings, method), shared=shared),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        reference=settings.reference or ("live" if method.reference else "none"),
        rank=settings.lora_rank or 0,
        dtype=dtype,
        frozen=settings.frozen_weights,
        state_bytes={"adamw": 8, "rmsprop": 4, "sgd": 0}[settings.optimizer],
        shared=shared,
        value=settings.value or "own",
        reward=_reward_shape(settings, shape) if method.reward_model else None,
        ppo_epochs=settings.ppo_epochs or _usual_epochs(settings.method),
        minibatches=settings.minibatches,
    )


def _refuse_uncut(settings: PlanConfig, shape: Shape) -> None:
    """Refuse models that ``afzal train`` cannot split by tensor parallelism."""
    kind = "a mixture of experts" if shape.experts else "a model that reads images or sounds" if shape.media else ""
    if kind and settings.tensor not in (None, 1):
        raise AfzalError(
            f"tensor={settings.tensor} is not possible with {kind}", where=settings.model, remedy="leave it out"
        )


def _reward_shape(settings: PlanConfig, policy: Shape) -> Shape | None:
    from afzal import plan

    if settings.reward_model == "function":
        return None
    return policy if settings.reward_model is None else plan.shape_from(settings.reward_model)


def _usual_epochs(method: str) -> int:
    """Default passes over an iteration's answers; 1 for methods without iterations."""
    from afzal.config import METHODS

    field = METHODS[method].settings.model_fields.get("ppo_epochs")
    return 1 if field is None else field.default


def device_of(settings: PlanConfig) -> Device:
    """The named hardware, with the numbers given in the settings in place of the table's."""
    from afzal import plan

    device = plan.device_named(settings.hardware)
    giga = {"memory": "memory_gb", "bandwidth": "bandwidth_gbs", "intra": "intra_gbs", "inter": "inter_gbs"}
    values = {field: getattr(settings, key) for field, key in giga.items()}
    changed = {field: value * 1e9 for field, value in values.items() if value is not None}
    if settings.tflops is not None:
        changed |= {"bf16": settings.tflops * 1e12, "fp32": settings.tflops * 1e12}
    return replace(device, **changed)


def wish_of(settings: PlanConfig) -> LayoutRequest:
    """The parts of the layout that the settings fix."""
    from afzal import plan

    recompute = None if settings.checkpointing == "auto" else settings.checkpointing
    parts = (settings.nodes, settings.gpus, settings.shards, settings.tensor)
    return plan.LayoutRequest(*parts, recompute, settings.tokens_per_forward)


def assumptions_of(settings: PlanConfig) -> Assumptions:
    """The shares of peak compute and link bandwidth that the plan assumes."""
    from afzal import plan

    default_mfu = 0.45 if settings.hardware == "cpu" else 0.3
    return plan.Assumptions(default_mfu if settings.mfu is None else settings.mfu, settings.link)


def _counts(settings: PlanConfig, method: Method) -> np.ndarray:
    """Token counts of all prompts and responses: from a file, or as stated in the settings."""
    import numpy as np

    if settings.data is None:
        branches = [settings.response_tokens] * (settings.responses or method.responses)
        return np.tile([settings.prompt_tokens, *branches], (settings.items, 1))
    from afzal.prepare.lengths import token_counts

    source = settings.tokenizer or settings.model
    counts = token_counts(
        settings.data, settings.method, source, columns=settings.columns, max_tokens=settings.max_tokens
    )
    if not method.online:
        return counts
    # the length of the file's answer is used for every answer the policy will generate
    return np.concatenate([counts[:, :1], np.repeat(counts[:, 1:2], settings.responses or method.responses, 1)], 1)
