"""IPO: identity preference optimisation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..method import Cost, Expression, Method, Paper
from ..training import BetaConfig


class IPOConfig(BetaConfig, frozen=True):
    """Identity preference optimisation on pairs."""

    method: Literal["ipo"] = Field("ipo", description="Identity preference optimisation.")


def objective(config: IPOConfig) -> Expression:
    """The objective of the same name, with its beta."""
    return "ipo", {"beta": config.beta}


METHOD = Method(
    name="ipo",
    line="Identity preference optimisation: a finite margin, for near-certain labels.",
    title="identity preference optimisation",
    full="identity preference optimisation (IPO)",
    settings=IPOConfig,
    objective=objective,
    cost=Cost(2, reference=True),
    paper=Paper(
        "azar2023general",
        "A General Theoretical Paradigm to Understand Learning from Human Preferences",
        "Azar, Mohammad Gheshlaghi and Rowland, Mark and Piot, Bilal and Guo, Daniel and Calandriello, Daniele and "
        "Valko, Michal and Munos, Rémi",
        "2023",
        "2310.12036",
    ),
)
