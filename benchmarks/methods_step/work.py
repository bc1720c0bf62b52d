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


@dataclass(frozen=True, slots=True)
class Kind:
    """A method of the bench: what a row of it is, and whether both sides have the same loss ("" or why not)."""

    rows: str
    differs: str = ""


DRAWN = "each side learns from answers of its own"
METHODS = {
    "sft": Kind("demonstrations"),
    "reward": Kind("pairs"),
    "kto": Kind("labels"),
    "orpo": Kind("pairs", "TRL's likelihood term is a mean over the tokens of prompts and responses"),
    "simpo": Kind("pairs"),
    "rloo": Kind("prompts", DRAWN),
    "grpo": Kind("prompts", DRAWN),
}
SIDES = ("afzal", "trl", "trl-best")


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

    The lengths, tokens and labels depend on the row's number alone, so every side and every method has the same.
    """
    per_update = items_of(method, work)
    counts, _ = shapes.lengths("hh", per_update * work.updates, 0, Path(work.shared))
    counts[:per_update] = counts[:per_update].clip(max=WARM_UP)
    found = shapes.rows(counts, work.vocabulary, 0)
    kind = METHODS[method].rows
    return [_example(kind, number, *(_text(ids) for ids in row)) for number, row in enumerate(found)]


def items_of(method: str, work: Work) -> int:
    """Rows of one update: prompts, where the policy writes several answers to each."""
    return max(work.items // ANSWERS, 1) if METHODS[method].rows == "prompts" else work.items


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
