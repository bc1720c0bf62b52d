"""Remarks on unusual settings."""

from __future__ import annotations

from .offline import BetaConfig
from .online import OnlineConfig
from .training import TrainConfig


def advice(config: TrainConfig) -> list[str]:
    """Remarks on values outside the usual ranges: unusual, not wrong."""
    notes = []
    kind = config.adapter_kind
    tuning = {"lora": "LoRA", None: "all weights"}.get(kind, f"adapter {kind}")
    low, high = _USUAL_LR_OF.get(kind or "") or _USUAL_LR[config.method == "sft", kind is not None]
    if not low <= config.lr <= high:
        notes.append(
            f"lr {config.lr:g} is outside the usual {low:g} to {high:g} for {config.method} on {tuning} "
            "(models below 100 million parameters take 1e-4 to 1e-3)"
        )
    if isinstance(config, BetaConfig) and not 0.01 <= config.beta <= 1:
        notes.append(f"beta {config.beta:g} is outside the usual 0.01 to 1; larger stays nearer to the reference")
    if config.method != "sft" and config.batch_size < 8:
        notes.append(f"batch_size {config.batch_size} is small for {config.method}: 32 to 128 is usual")
    if config.method != "sft" and config.epochs > 5 and not isinstance(config, OnlineConfig):
        notes.append(f"{config.epochs:g} epochs: {config.method} over-optimises after a few; see early_stop_patience")
    if config.pass_tokens < config.max_tokens:
        notes.append(f"tokens_per_forward {config.tokens_per_forward} is below max_tokens {config.max_tokens}")
    return notes


# (is SFT, is LoRA) -> usual peak learning rates of models of 1B to 70B parameters.
_USUAL_LR = {
    (True, False): (1e-6, 1e-4),
    (True, True): (1e-5, 1e-3),
    (False, False): (1e-7, 1e-5),
    (False, True): (1e-6, 1e-4),
}
# Adapters of few weights take large steps.
_USUAL_LR_OF = {"ia3": (1e-5, 1e-2), "prefix": (1e-4, 0.3), "prompt": (1e-4, 0.3), "p_tuning": (1e-4, 0.3)}
