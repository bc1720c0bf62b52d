"""A policy's answers as rows of a round's files, and their KL to another policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.config import IterateConfig
from afzal.errors import AfzalError
from afzal.generate import Prompt, Sample, Sampling, prompt_ids, sample
from afzal.generate.with_server import Answer
from afzal.iterate.prompts import Question
from afzal.model.load import config_of, pick_device, width_of
from afzal.model.probe import choose_common_sharing
from afzal.model.reference import Frozen
from afzal.recipes import parallel
from afzal.recipes.divergence import kl_along
from afzal.recipes.setup import dtype_of
from afzal.records import turns_to_json
from afzal.tokens import Speaker
from afzal.train import ranks
from afzal.train.feed import Layout
from afzal.train.shard import gathered


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded policy and the ids that end its answers."""

    model: Any
    ends: Sequence[int]
    rows_per_batch: int = 128

    @classmethod
    def load(cls, path: str, config: IterateConfig, ends: Sequence[int]) -> Policy:
        """Load the policy saved at ``path``, on the device and in the dtype of the settings; all ranks together."""
        device = pick_device(ranks.own_device(config.device))
        return cls(parallel.frozen_policy(path, dtype_of(config, device, width_of(config_of(path))), device), ends)

    def draw(
        self, questions: Sequence[Question], n: int, sampling: Sampling, seed: int, part: range | None = None
    ) -> list[Sample]:
        """``n`` answers to every question, in order. All ranks must call this together.

        Args:
            part: the numbers of the questions to answer; default: all. A question's answer is the same in any part,
                except for the last bit of the logits.
        """
        numbers = range(len(questions)) if part is None else part
        with gathered(self.model):
            samples = sample(
                self.model,
                [questions[k].input for k in numbers],
                eos=self.ends,
                n=n,
                sampling=sampling,
                seed=seed,
                rows_per_batch=self.rows_per_batch,
                numbers=numbers,
            )
        return [replace(s, prompt_index=numbers[s.prompt_index]) for s in samples]


def rows_of(samples: Sequence[Sample], questions: Sequence[Question], speaker: Speaker) -> list[dict[str, Any]]:
    """Answers as JSON values: ``prompt_index``, ``sample`` (its number among the prompt's answers), ``prompt``,
    ``text`` without its end marker, ``tokens`` with it, and ``stop``."""
    texts = speaker.continuations([(questions[s.prompt_index].ids, s.answer.tolist()) for s in samples])
    rows: list[dict[str, Any]] = []
    for s, text in zip(samples, texts, strict=True):
        number = rows[-1]["sample"] + 1 if rows and rows[-1]["prompt_index"] == s.prompt_index else 0
        prompt = turns_to_json(questions[s.prompt_index].prompt)
        header = {"prompt_index": s.prompt_index, "sample": number, "prompt": prompt, "text": text}
        rows.append({**header, "tokens": len(s.ids), "stop": s.stop})
    return rows


def served_rows(answers: Sequence[Answer], questions: Sequence[Question], speaker: Speaker) -> list[dict[str, Any]]:
    """A server's answers in the format of :func:`rows_of`; tokens that the server does not count are counted here."""
    rows: list[dict[str, Any]] = []
    for a in answers:
        tokens = (
            len(speaker.codec.encode([a.text], markers=False)[0]) + (a.stop == "eos") if a.tokens is None else a.tokens
        )
        header = {"prompt_index": a.prompt_index, "sample": a.sample}
        prompt = turns_to_json(questions[a.prompt_index].prompt)
        rows.append({**header, "prompt": prompt, "text": a.text, "tokens": tokens, "stop": a.stop})
    return rows


def sequence_kl(
    policy: Any,
    first: Any,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    budget: int,
    temperature: float = 1.0,
) -> list[float]:
    """KL(policy || first) along each answer, in nats, by :func:`~afzal.recipes.divergence.kl_along`.

    All ranks must call this together, with or without answers.

    Args:
        samples: the policy's answers, in order of their prompts; every token counts, including the end marker.
        prompts: the prompts that the samples index, with their images and sounds.
        budget: tokens per forward pass.
        temperature: of both policies.

    Raises:
        AfzalError: the KL is infinite: the policy gives probability to a token that ``first`` never writes.
    """
    device = next(policy.parameters()).device
    with gathered(policy, first):
        if not samples:
            return []
        longest = max(len(prompt_ids(prompts[s.prompt_index])) + len(s.ids) for s in samples)
        layout = Layout(choose_common_sharing((policy, first), longest), budget, device)
        values = kl_along(policy, Frozen(first), samples, prompts, layout, temperature)
    if not all(map(math.isfinite, values)):
        raise AfzalError(
            "the KL of a policy to its start is not finite",
            why="it can write tokens whose logits are -inf in the start model, or its logits are not numbers",
            remedy="compare models that exclude the same tokens",
        )
    return values
