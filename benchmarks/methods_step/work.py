"""What all sides are given: the rows of each method, and the models and the tokenizer in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.dpo_step import shapes

ANSWERS = 4  # to a prompt, of the methods that learn from rewards
SHARPER = 2.0  # the policy's logits over the reference's
WARM_UP = (64, 16, 16)  # the longest rows of the first update, which is not timed
LR, BETA, GAMMA, LAM = 1e-6, 0.1, 1.0, 0.1
SIMPO_BETA, KL = 2.0, 0.05
PPO = {"ppo_epochs": 4, "clip": 0.2, "value_clip": 0.2, "vf_coef": 0.1, "lam": 0.95, "value_lr": 2 * LR}
BOTH = ("afzal", "trl", "trl-best")
SIDES = (*BOTH, "plain")


@dataclass(frozen=True, slots=True)
class Kind:
    """A method of the bench.

    Attributes:
        rows: what a row of it is.
        differs: why the sides do not have the same first loss; "" where they have.
        answers: to a prompt, where the policy writes them.
        sides: whose updates there are.
        remark: what else a reader of the figures should know.
        in_rounds: whether Afzal's updates are rounds.
        bf16_rounding: times the tolerance of bf16 that first losses may be apart.
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
    """One job, as the process of a side reads it.

    Attributes:
        folder: holds ``policy``, ``reference`` and ``reward``, each with the tokenizer.
        items: rows per update; answers, where the policy writes them.
        updates: the first one, which is not timed, included.
        tokens: length of an answer that the policy writes.
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
    """Rows of text in the order of training: those of all updates, the first update's being short.

    The lengths, tokens and labels depend on the row's number alone, so every side has the same.
    """
    kind = METHODS[method].rows
    return [_example(kind, number, *map(_text, row)) for number, row in enumerate(_rows(method, work))]


def given_answers(method: str, work: Work) -> dict[str, list[list[int]]]:
    """By prompt of the first update, ids of answers that all sides take in place of their own, EOS included.

    So the first losses of methods whose policies write what they learn from can be compared.
    """
    first = _rows(method, work)[: items_of(method, work)]
    return {_text(prompt): list(answers)[: METHODS[method].answers] for prompt, *answers in first}


def _rows(method: str, work: Work) -> list[Any]:
    """Ids of prompt, chosen and rejected; in rounds they come in the order of Afzal's, and none is short."""
    per_update = items_of(method, work)
    counts, _ = shapes.lengths("hh", per_update * work.updates, 0, Path(work.shared))
    if METHODS[method].in_rounds:
        return sorted(shapes.rows(counts, work.vocabulary, 0), key=lambda row: _place(_text(row[0])))
    counts[:per_update] = counts[:per_update].clip(max=WARM_UP)
    return shapes.rows(counts, work.vocabulary, 0)


def _place(prompt: str) -> str:
    """What `afzal iterate` sorts prompts by, at seed 0."""
    from afzal.iterate.prompts import place
    from afzal.records import Item, prompt_key

    return place(prompt_key(Item("", prompt, ())), 0)


def items_of(method: str, work: Work) -> int:
    """Rows of one update: prompts, where the policy writes several answers to each."""
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
    """Words that the tokenizer reads back as these ids; both sides write the end themselves."""
    return "".join(f" {i}" for i in ids if i > 1)


def even(prompt: str, answer: str) -> float:
    """The reward: the share of even words."""
    words = [int(word) for word in answer.split() if word.isdigit()]
    return sum(word % 2 == 0 for word in words) / max(len(words), 1)


def evens(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The same reward as TRL asks for it."""
    return [even(prompt, answer) for prompt, answer in zip(prompts, completions, strict=True)]


def high(prompt: str, answer: str) -> float:
    """The reward of online DPO: the mean word, which no two answers share, so that all of them make pairs."""
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
    """Write the three models, and return how many weights the policy has.

    The policy is the reference with its logits doubled: surer of itself and not better, so that random text is less
    likely under it. KTO's KL term is then negative whichever rows it is estimated from, and counts as 0 on all sides.
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
