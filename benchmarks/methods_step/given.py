"""The first answers of methods whose policies write what they learn from: given ones, the same on all sides.

What a side samples with is replaced by a function that knows the answers to the prompts of the first update, and asks
what it replaces for all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Answers = Mapping[str, Sequence[list[int]]]
"""By prompt, ids of answers with their EOS."""


def to_afzal(module: Any, known: Answers) -> None:
    """Let a module of Afzal that calls ``sample`` get the known answers to known prompts."""
    import numpy as np

    from afzal.generate import Sample

    by_ids = {tuple(map(int, prompt.split())): answers for prompt, answers in known.items()}
    drawn = module.sample

    def sample(model: Any, prompts: Sequence[Any], **settings: Any) -> Any:
        asked = [tuple(map(int, getattr(p, "prompt", p))) for p in prompts]
        if not by_ids.keys() >= set(asked):
            return drawn(model, prompts, **settings)
        return [
            Sample(k, np.array(ids, dtype=np.int32), "eos", np.zeros(len(ids), dtype=np.float32))
            for k, prompt in enumerate(asked)
            for ids in by_ids[prompt]
        ]

    module.sample = sample


def to_trl(trainer: type, known: Answers) -> type:
    """TRL's trainer of online DPO with the known answers to known prompts."""

    class Given(trainer):  # type: ignore[misc, valid-type]
        def _generate(self, model: Any, prompts: list[str], images: Any = None) -> Any:
            if not known.keys() >= set(prompts):
                return super()._generate(model, prompts, images)
            read = self.processing_class(prompts, return_tensors="pt", padding=True, padding_side="left")
            ids, mask = padded([known[prompt][k] for k in range(2) for prompt in prompts])
            return read["input_ids"].repeat(2, 1), read["attention_mask"].repeat(2, 1), ids, mask, None

    return Given


def padded(answers: Sequence[list[int]]) -> tuple[Any, Any]:
    """Answers of several lengths as ids and mask, with 0 on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True)
    return ids, (ids != 0).long()
