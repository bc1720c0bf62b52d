"""Remarks on unusual settings."""

from __future__ import annotations

from .methods import METHODS
from .training import PolicyConfig, TrainConfig

_OF_SAMPLES = ("sample_tokens", "sample_temperature")
_SMALL = 100_000_000  # weights below which models take larger steps
_RUIN = 10  # times the usual learning rate


def advice(config: TrainConfig, parameters: int | None = None) -> list[str]:
    """Remarks on values outside the usual ranges: unusual, not wrong.

    Args:
        parameters: number of the model's weights, if known.
    """
    notes = []
    adapter = config.adapter_kind
    tuning = {"lora": "LoRA", None: "an adapter" if config.has_new_adapter else "all weights"}.get(
        adapter, f"adapter {adapter}"
    )
    method = METHODS[config.method]
    low, high = _USUAL_LR_OF.get(adapter or "") or method.usual_lr[config.has_new_adapter]
    small = parameters is not None and parameters < _SMALL
    if small and adapter not in _USUAL_LR_OF:
        high = _SMALL_LR * (10 if config.has_new_adapter else 1)
    if config.lr == 0:
        notes.append("lr is 0: no weight will move")
    elif (
        config.optimizer != "sgd" and not low <= config.lr <= high
    ):  # sgd steps scale with the gradients: no usual rate
        scope = f"{tuning} of a model below 100 million" if small else tuning
        limits = "" if parameters is not None else " (models below 100 million weights take up to 3e-3, with LoRA 3e-2)"
        warning = "; steps of that size usually ruin a model" if config.lr > _RUIN * high else ""
        notes.append(
            f"lr {config.lr:g} is outside the usual {low:g} to {high:g} for {config.method} on {scope}{limits}{warning}"
        )
    if (beta := getattr(config, "beta", None)) is not None and not 0.01 <= beta <= 1:
        notes.append(f"beta {beta:g} is outside the usual 0.01 to 1; larger stays closer to the reference")
    if not method.small_batches and config.batch_size < 8:
        notes.append(f"batch_size {config.batch_size} is small for {config.method}: 32 to 128 is usual")
    if method.over_optimises and config.epochs > 5:
        notes.append(f"{config.epochs:g} epochs: {config.method} over-optimises after a few; see early_stop_patience")
    if config.pass_tokens < config.max_tokens:
        notes.append(f"tokens_per_forward {config.tokens_per_forward} is below max_tokens {config.max_tokens}")
    if config.policy is not None and config.rollouts is None:
        notes += _unsampled(config.policy)
    return notes


def _unsampled(config: PolicyConfig) -> list[str]:
    """Sample settings without effect, because no samples are drawn."""
    held_out = config.eval_data is not None or config.eval_fraction > 0
    if held_out and config.sample_prompts:
        return []
    keys = ("sample_prompts", *_OF_SAMPLES) if config.sample_prompts else _OF_SAMPLES
    fields = PolicyConfig.model_fields
    changed = [key for key in keys if getattr(config, key) != fields[key].default]
    why = "sample_prompts is 0" if held_out else "nothing is held out"
    return [f"no effect: {', '.join(changed)}, since {why}"] if changed else []


_SMALL_LR = 3e-3  # of models below 100 million weights, 10 times that with LoRA
# Adapters with few weights take large steps.
_USUAL_LR_OF = {"ia3": (1e-5, 1e-2), "prefix": (1e-4, 0.3), "prompt": (1e-4, 0.3), "p_tuning": (1e-4, 0.3)}
