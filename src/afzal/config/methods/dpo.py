"""DPO: direct preference optimisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..method import Cost, Expression, Method, Paper
from ..training import BetaConfig


class DPOConfig(BetaConfig, frozen=True):
    """Direct preference optimisation on pairs."""

    method: Literal["dpo"] = Field("dpo", description="Direct preference optimisation.")


def objective(config: DPOConfig) -> Expression:
    """The objective of the same name, with its beta."""
    return "dpo", {"beta": config.beta}


METHOD = Method(
    name="dpo",
    line="Direct preference optimisation on pairs, ties and soft labels included.",
    title="direct preference optimisation",
    full="direct preference optimisation (DPO)",
    settings=DPOConfig,
    objective=objective,
    cost=Cost(2, reference=True),
    paper=Paper(
        "rafailov2023direct",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D. and "
        "Finn, Chelsea",
        "2023",
        "2305.18290",
    ),
)
