"""Which settings each method has: the one table."""

from __future__ import annotations

from .models import KTOConfig, PairConfig, PreferConfig, RewardConfig, SFTConfig, TrainConfig
from .online import GRPOConfig, PPOConfig, ReinforceConfig, RLOOConfig

CONFIGS: dict[str, type[TrainConfig]] = {
    "sft": SFTConfig,
    "dpo": PairConfig,
    "ipo": PairConfig,
    "kto": KTOConfig,
    "prefer": PreferConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "rloo": RLOOConfig,
    "grpo": GRPOConfig,
    "reinforce": ReinforceConfig,
}
