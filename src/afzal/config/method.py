"""What Afzal knows of a training method, in one value: the command line, plans, pages and model cards read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .training import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from afzal.objectives.advantages import Answered

Expression = tuple[str, Mapping[str, Any]]
"""An objective of the registry or a sum of them, and the parameters that the settings give it."""


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method comes from, as a model card cites it."""

    key: str
    title: str
    authors: str
    year: str
    arxiv: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan has to count for one item of a method.

    Attributes:
        responses: to each prompt, where the data do not say.
        reference: whether a reference's log-probs are needed.
        estimates: further forward passes of an update per response token, such as KTO's other prompts.
        scalar: one score per response, in place of logits.
        value: a value model trains beside the policy.
        reward_model: the answers may be scored by a further model.
        online: answers are sampled during the training.
        alone: one process trains it, whatever there is.
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
"""``(answers, settings, kl_coef) -> numbers of every token``, ``[N, L]`` float64 each: ``advantage``, and what else the
loss reads beside the log-probs of the time of writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One training method.

    Attributes:
        name: as in ``afzal train NAME``.
        line: one sentence for the command line.
        title: as a page names it, and ``full`` as a model card does; empty where its objective names it.
        settings: its typed settings; which of :class:`TrainConfig`'s capabilities they have decides what is built.
        objective: the objective, from the settings.
        cost: what a plan counts.
        paper: where it comes from.
        unit: what its objective judges, unless a run says so itself.
        advantages: of a method that learns from rewards.
        usual_lr: the usual range of the peak learning rate with all weights and with a low-rank adapter, for models of
            1B to 70B parameters.
        small_batches: whether fewer than eight items per update are usual.
        over_optimises: whether more than a few epochs over one data set are usually too many.
        next: words of the command that makes sense after a sound run, from its folder and its data.
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
        """Whether it trains a model that writes, and not one that scores."""
        return not self.cost.scalar
