"""Samples in the same format from vLLM, for machines that have it: ``pip install 'afzal[vllm]'``.

**It has been tested only with a stand-in for vLLM** with the same interface, and has never run with vLLM itself.

vLLM is imported only when :func:`sample_with_vllm` is called. It uses its own random numbers, so its texts differ from
those of :func:`afzal.generate.sample` but have the same distribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from afzal.errors import AfzalError
from afzal.folders.load import model_folder
from afzal.generate.rows import Sample, answer_limits
from afzal.generate.token_sampling import PLAIN, Sampling, row_keys
from afzal.model.load import config_of, context_tokens
from afzal.model.media import placeholder_ids

_BARRED = -100.0  # nats: the lowest logit bias that vLLM allows; log-probs exclude it


def sample_with_vllm(
    model: str | Any,
    prompts: Sequence[Sequence[int]],
    *,
    eos: Iterable[int],
    n: int = 1,
    sampling: Sampling = PLAIN,
    seed: int = 0,
) -> list[Sample]:
    """``n`` continuations of every prompt, ordered by prompt and then by sample number.

    Args:
        model: a model folder or hub id, or a loaded ``vllm.LLM``, whose ``logprobs_mode`` must be ``raw_logprobs`` (the
            default), so that log-probs are those at temperature 1. With a folder, placeholder ids of images and sounds
            are never drawn; with a loaded engine, those in ``sampling.barred``.
        seed: each prompt's requests get a separate seed derived from it.

    Raises:
        AfzalError: vLLM is not installed, or it returned no log-probs.
    """
    vllm = _vllm()
    engine: Any = model
    context = None
    if isinstance(model, str):
        folder, context = model_folder(model), context_tokens(model)
        sampling = replace(sampling, barred=placeholder_ids(config_of(model)))
        safely = {"trust_remote_code": False, "load_format": "safetensors"}
        engine = vllm.LLM(model=folder, logprobs_mode="raw_logprobs", **safely)
    ends = sorted(set(eos))
    requests = [vllm.TokensPrompt(prompt_token_ids=list(map(int, p))) for p in prompts]
    keys = row_keys(seed, np.arange(len(prompts)), np.zeros(len(prompts), dtype=np.int64)) >> np.uint64(33)
    limits = answer_limits([len(p) for p in prompts], sampling.max_new_tokens, context)
    settings = [
        _settings(vllm, ends, n, replace(sampling, max_new_tokens=limit), int(key))
        for limit, key in zip(limits, keys, strict=True)
    ]
    outputs = engine.generate(requests, settings, use_tqdm=False)
    return [_sample(i, c, ends) for i, o in enumerate(outputs) for c in sorted(o.outputs, key=lambda c: c.index)]


def _settings(vllm: Any, ends: list[int], n: int, sampling: Sampling, seed: int) -> Any:
    return vllm.SamplingParams(
        n=n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        max_tokens=sampling.max_new_tokens,
        min_tokens=sampling.min_new_tokens,
        seed=seed,
        logprobs=0,  # of the drawn token only
        ignore_eos=True,  # the ends are those given here, not the model's
        stop_token_ids=ends,
        detokenize=False,
        logit_bias=dict.fromkeys(sampling.barred, _BARRED) if sampling.barred else None,
    )


def _sample(prompt_index: int, completion: Any, ends: list[int]) -> Sample:
    ids = np.asarray(completion.token_ids, dtype=np.int32)
    if completion.logprobs is None or len(completion.logprobs) != len(ids):
        raise AfzalError("vLLM returned no log-probs", remedy="load it with logprobs_mode='raw_logprobs'")
    logps = [step[token].logprob for step, token in zip(completion.logprobs, ids.tolist(), strict=True)]
    stopped = len(ids) > 0 and int(ids[-1]) in ends
    return Sample(prompt_index, ids, "eos" if stopped else "length", np.asarray(logps, dtype=np.float32))


def _vllm() -> Any:
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise AfzalError(
            "vLLM is not installed", why=str(error), remedy="pip install 'afzal[vllm]', or leave out vllm"
        ) from error
    return vllm
