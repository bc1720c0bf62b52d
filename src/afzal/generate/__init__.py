"""Sampling continuations from a model."""

from .choose import choose_decoding
from .rows import Sample, TokenCallback, answer_limits
from .sample import Prompt, as_trees, prompt_ids, sample
from .token_sampling import Sampling
from .with_vllm import sample_with_vllm

__all__ = [
    "Prompt",
    "Sample",
    "Sampling",
    "TokenCallback",
    "answer_limits",
    "as_trees",
    "choose_decoding",
    "prompt_ids",
    "sample",
    "sample_with_vllm",
]
