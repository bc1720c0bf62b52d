"""Input of all sides: each method's rows, and a folder with the models and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.dpo_step import shapes

ANSWERS = 4  # per prompt, for the methods that learn from rewards
SHARPER = 2.0  # factor from the reference's logits to the policy's
WARM_UP = (64, 16, 16)  # maximum lengths in the first, untimed update
LR, BETA, GAMMA, LAM = 1e-6, 0.1, 1.0, 0.1
SIMPO_BETA, KL = 2.0, 0.05
PPO = {"ppo_epochs": 4, "clip": 0.2, "value_clip": 0.2, "vf_coef": 0.1, "lam": 0.95, "value_lr": 2 * LR}
BOTH = ("afzal", "trl", "trl-best")
SIDES = (*BOTH, "plain")


@dataclass(frozen=True, slots=True)
class Kind:
    """A method of the benchmark.

    Attributes:
        rows: kind of its rows.
        differs: why the sides' first losses differ; "" if they do not.
        answers: answers per prompt, if the policy samples them.
        sides: sides that implement the method.
        remark: a further sentence for the reader.
        in_rounds: whether Afzal's updates are rounds.
        bf16_rounding: factor on the bf16 tolerance of first losses.
    """

    rows: str
    differs: str = ""
    answers: int = ANSWERS
    sides: tuple[str, ...] = BOTH
    remark: str = ""
    in_rounds: bool = False
    bf16_rounding: float = 1.0


DRAWN = "each side learns from its own answers"
METHODS = {
    "sft": Kind("demonstrations"),
    "reward": Kind("pairs"),
    "kto": Kind("labels"),
    "orpo": Kind("pairs", "TRL's likelihood term is a mean over the tokens of prompts and responses"),
    "simpo": Kind("pairs"),
    "rloo": Kind("prompts", DRAWN),
    "grpo": Kind("prompts", DRAWN),
    "online-dpo": Kind(
        "prompts",
        answers=2,
        remark="2 answers per prompt, given in the first update. Afzal's update is a complete round of "
        "`afzal iterate --preset online`, including writing its files and model; TRL decodes without a cache by "
        "default.",
        in_rounds=True,
    ),
    "ppo": Kind(
        "prompts",
        answers=1,
        sides=("afzal", "plain"),
        remark="1 answer per prompt, given in the first update. On both sides an update is an iteration: answers are "
        "sampled and scored once, followed by 4 passes with an optimiser step each; value models compute in the "
        "policy's dtype. The first loss is the mean over these passes; in bf16 first losses may differ by a relative "
        "0.05, since the terms of a policy loss nearly cancel.",
        bf16_rounding=2.5,
    ),
}


@dataclass(frozen=True, slots=True)
class Work:
    """The job of a side's process.

    Attributes:
        folder: contains ``policy``, ``reference`` and ``reward``, each with the tokenizer.
        items: rows per update (answers, if the policy samples them).
        updates: number of updates, including the first, untimed one.
        tokens: length of a sampled answer.
    """

    folder: str
    items: int
    updates: int
    dtype: str
    vocabulary: int
    tokens: int
    shared: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examples(method: str, work: Work) -> list[dict[str, Any]]:
    """Rows of text of all updates, in training order; those of the first update are short.

    Lengths, tokens and labels depend only on the row's number, so every side gets the same rows.
    """
    kind = METHODS[method].rows
    return [_example(kind, number, *map(_text, row)) for number, row in enumerate(_rows(method, work))]


def given_answers(method: str, work: Work) -> dict[str, list[list[int]]]:
    """By prompt of the first update, token ids of the answers that all sides use instead of their own, including EOS.

    They make first losses comparable for methods whose policies sample their training data.
    """
    first = _rows(method, work)[: items_of(method, work)]
    return {_text(prompt): list(answers)[: METHODS[method].answers] for prompt, *answers in first}


def _rows(method: str, work: Work) -> list[Any]:
    """Ids of prompt, chosen and rejected; methods in rounds use Afzal's order, and have no short rows."""
    per_update = items_of(method, work)
    counts, _ = shapes.lengths("hh", per_update * work.updates, 0, Path(work.shared))
    if METHODS[method].in_rounds:
        return sorted(shapes.rows(counts, work.vocabulary, 0), key=lambda row: _place(_text(row[0])))
    counts[:per_update] = counts[:per_update].clip(max=WARM_UP)
    return shapes.rows(counts, work.vocabulary, 0)


def _place(prompt: str) -> str:
    """The sort key of `afzal iterate` for prompts, at seed 0."""
    from afzal.iterate.prompts import sort_key
    from afzal.records import Item, prompt_key

    return sort_key(prompt_key(Item("", prompt, ())), 0)


def items_of(method: str, work: Work) -> int:
    """Rows per update; these are prompts if the policy samples several answers to each."""
    kind = METHODS[method]
    return max(work.items // kind.answers, 1) if kind.rows == "prompts" else work.items


def _example(kind: str, number: int, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    if kind == "prompts":
        return {"prompt": prompt}
    if kind == "pairs":
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if kind == "demonstrations":
        return {"prompt": prompt, "completion": chosen}
    good = number % 2 == 0
    return {"prompt": prompt, "completion": chosen if good else rejected, "label": good}


def _text(ids: Sequence[int]) -> str:
    """Text that the tokenizer encodes to these ids; both sides add EOS themselves."""
    return "".join(f" {i}" for i in ids if i > 1)


def even(prompt: str, answer: str) -> float:
    """The reward: the share of even numbers among the words."""
    words = [int(word) for word in answer.split() if word.isdigit()]
    return sum(word % 2 == 0 for word in words) / max(len(words), 1)


def evens(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The same reward as TRL asks for it."""
    return [even(prompt, answer) for prompt, answer in zip(prompts, completions, strict=True)]


def high(prompt: str, answer: str) -> float:
    """The reward of online DPO: the mean number, which differs between answers, so all of them form pairs."""
    words = [int(word) for word in answer.split() if word.isdigit()]
    return sum(words) / max(len(words), 1)


def highs(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The same reward as TRL asks for it."""
    return [high(prompt, answer) for prompt, answer in zip(prompts, completions, strict=True)]


def sizes(*, quick: bool) -> dict[str, int]:
    """The model's sizes: 58 million weights, or 2 million."""
    if quick:
        return {"width": 128, "layers": 4, "heads": 4, "kv_heads": 4, "vocabulary": 4000}
    return {"width": 512, "layers": 8, "heads": 8, "kv_heads": 8, "vocabulary": 32000}


def save_models(folder: Path, size: Mapping[str, int]) -> int:
    """Write the three models; returns the number of weights of the policy.

    The policy is the reference with doubled logits: more confident but no better, so random text is less likely under
    it. KTO's KL term is then negative for any rows it is estimated from, and counts as 0 on all sides.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from benchmarks.dpo_step import models
    from benchmarks.dpo_step.sides import _tokenizer

    config = models.llama(**size, feed_forward=None)  # type: ignore[arg-type]
    tokenizer, device = _tokenizer(config.vocab_size), torch.device("cpu")
    reference, policy = models.build(config, device), models.build(config, device)
    policy.lm_head.weight.data.mul_(SHARPER)
    config.num_labels = 1
    torch.manual_seed(1)
    scorer = AutoModelForSequenceClassification.from_config(config)
    for name, model in {"reference": reference, "policy": policy, "reward": scorer}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return sum(weight.numel() for weight in policy.parameters())
