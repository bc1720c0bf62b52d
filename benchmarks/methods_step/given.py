"""Fix the first answers of methods whose policies sample their training data, so all sides learn from the same ones.

A side's sampling function is replaced by one that returns known answers to the prompts of the first update, and calls
the original for all other prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Answers = Mapping[str, Sequence[list[int]]]
"""By prompt, token ids of the answers, including EOS."""


def to_afzal(module: Any, known: Answers) -> None:
    """Patch ``sample`` in a module of Afzal to return the known answers to known prompts."""
    import numpy as np

    from afzal.generate import Sample

    by_ids = {tuple(map(int, prompt.split())): answers for prompt, answers in known.items()}
    drawn = module.sample

    def sample(model: Any, prompts: Sequence[Any], **settings: Any) -> Any:
        keys = [tuple(map(int, getattr(p, "prompt", p))) for p in prompts]
        if not by_ids.keys() >= set(keys):
            return drawn(model, prompts, **settings)
        return [
            Sample(k, np.array(ids, dtype=np.int32), "eos", np.zeros(len(ids), dtype=np.float32))
            for k, prompt in enumerate(keys)
            for ids in by_ids[prompt]
        ]

    module.sample = sample


def to_trl(trainer: type, known: Answers) -> type:
    """A subclass of TRL's online DPO trainer that returns the known answers to known prompts."""

    class Given(trainer):  # type: ignore[misc, valid-type]
        def _generate(self, model: Any, prompts: list[str], images: Any = None) -> Any:
            if not known.keys() >= set(prompts):
                return super()._generate(model, prompts, images)
            read = self.processing_class(prompts, return_tensors="pt", padding=True, padding_side="left")
            ids, mask = padded([known[prompt][k] for k in range(2) for prompt in prompts])
            return read["input_ids"].repeat(2, 1), read["attention_mask"].repeat(2, 1), ids, mask, None

    return Given


def padded(answers: Sequence[list[int]]) -> tuple[Any, Any]:
    """Answers padded on the right with 0: ids and mask."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True)
    return ids, (ids != 0).long()
