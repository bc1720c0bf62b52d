"""A training method's description, read by the command line, plans, pages and model cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .training import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from afzal.objectives.advantages import Answered

Expression = tuple[str, Mapping[str, Any]]
"""A registered objective or a sum of them, and its parameters from the settings."""


@dataclass(frozen=True, slots=True)
class Paper:
    """The paper that introduced a method, as a model card cites it."""

    key: str
    title: str
    authors: str
    year: str
    arxiv: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan counts for one item of a method.

    Attributes:
        responses: responses per prompt, if the data do not say.
        reference: whether a reference's log-probs are needed.
        estimates: additional forward passes of an update per response token, such as KTO's other prompts.
        scalar: whether the model outputs one score per response instead of logits.
        value: whether a value model trains alongside the policy.
        reward_model: whether a further model may score the answers.
        online: whether answers are sampled during training.
        alone: whether a single process trains it, however many there are.
    """

    responses: int
    reference: bool
    estimates: float = 0.0
    scalar: bool = False
    value: bool = False
    reward_model: bool = False
    online: bool = False
    alone: bool = False


Advantages = Callable[["Answered", Any, float], "dict[str, Tensor]"]
"""``(answers, settings, kl_coef) -> per-token numbers``, ``[N, L]`` float64 each: ``advantage``, and whatever else the
loss reads in addition to the log-probs at sampling time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One training method.

    Attributes:
        name: as in ``afzal train NAME``.
        line: one sentence for the command line.
        title: its name on a page; ``full`` is its name on a model card. Empty if its objective gives the name.
        settings: its typed settings; the capabilities of :class:`TrainConfig` that they have decide what is built.
        objective: returns the objective for given settings.
        cost: what a plan counts.
        paper: the paper that introduced it.
        unit: the unit of its objective, unless a run states it.
        advantages: for a method that learns from rewards.
        usual_lr: the usual range of the peak learning rate with all weights and with a low-rank adapter, for models of
            1B to 70B parameters.
        small_batches: whether fewer than eight items per update are usual.
        over_optimises: whether more than a few epochs over one data set are usually too many.
        next: returns the words of the next sensible command after a sound run, given its folder and its data.
    """

    name: str
    line: str
    title: str
    full: str
    settings: type[TrainConfig]
    objective: Callable[[Any], Expression]
    cost: Cost
    paper: Paper | None = None
    unit: Literal["pair", "group", "response", "token"] = "pair"
    advantages: Advantages | None = None
    usual_lr: tuple[tuple[float, float], tuple[float, float]] = ((1e-7, 1e-5), (1e-6, 1e-4))
    small_batches: bool = False
    over_optimises: bool = True
    next: Callable[[str, str], Sequence[str]] | None = None

    @property
    def online(self) -> bool:
        """Whether it learns from the policy's own answers."""
        return self.cost.online

    @property
    def writes(self) -> bool:
        """Whether it trains a model that writes rather than one that scores."""
        return not self.cost.scalar
