"""Which settings each method has: the one table."""

from __future__ import annotations

from .offline import KTOConfig, PairConfig, PreferConfig, RewardConfig, SFTConfig
from .online import GRPOConfig, PPOConfig, ReinforceConfig, RLOOConfig
from .training import TrainConfig

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
