"""Answers of a saved model to prompts, as ``afzal generate`` writes them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from afzal import data, runs
from afzal.config import GenerateConfig
from afzal.errors import AfzalError
from afzal.generate import Sample, Sampling, answer_limits, choose_decoding, sample, sample_with_vllm
from afzal.model.load import load_model, pick_device
from afzal.model.speaking import open_speaker
from afzal.records import Item, Message, template_fields, turns_to_row
from afzal.tokens import Speaker, Tree, any_chat, distinct_prompts


def generate(config: GenerateConfig) -> Path | None:
    """Sample ``config.n`` answers per prompt; write them as JSONL, or print them when there is no ``config.out``.

    A single ``prompt`` is sent through the chat template when the model has one, and continued verbatim otherwise;
    prompts of a file keep the kind they have there.

    Raises:
        AfzalError: model or prompts cannot be read, or ``config.out`` exists.
    """
    runs.refuse_existing(config.out)
    speaker = open_speaker(config.model)
    prompts = _prompts(config, speaker)
    asked = speaker.prompt_trees(prompts)
    ids = [t.prompt.tolist() for t in asked]
    _say_what_is_short(config, speaker, ids)
    drawn = _draw(config, speaker.ends(chat=any_chat(prompts)), asked)
    records = [_record(s, prompts, ids, speaker) for s in drawn]
    if config.out is None:
        for record in records:
            print(_shown(record))
        return None
    runs.append_jsonl(Path(config.out), records)
    return Path(config.out)


def _draw(config: GenerateConfig, eos: Sequence[int], asked: Sequence[Tree]) -> list[Sample]:
    ids = [t.prompt.tolist() for t in asked]
    sampling = Sampling(
        config.max_new_tokens, config.temperature, config.top_p, config.top_k or 0, config.min_new_tokens
    )
    shows = any(t.media for t in asked)
    if config.engine == "vllm":
        if shows:
            raise AfzalError("vLLM is given texts alone, and prompts show images or sounds", remedy="--engine stock")
        print("note: Afzal has been tested with a stand-in for vLLM only, never with vLLM itself", file=sys.stderr)
        return sample_with_vllm(config.model, ids, eos=eos, n=config.n, sampling=sampling, seed=config.seed)
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    model = load_model(config.model, device=pick_device("auto"), dtype=dtype)
    longest = max(map(len, ids)) + config.max_new_tokens
    decoding, reason = ("stock", "") if shows or config.engine == "stock" else choose_decoding(model, longest)
    if reason:
        print(f"note: prompts are read once per answer, since {reason}", file=sys.stderr)
    return sample(
        model,
        asked,
        eos=eos,
        n=config.n,
        sampling=sampling,
        seed=config.seed,
        rows_per_batch=config.batch_size,
        decoding=decoding,
    )


def _prompts(config: GenerateConfig, speaker: Speaker) -> list[Item]:
    """The different prompts, as items without responses."""
    if config.prompt is not None:
        asked = (Message("user", config.prompt),) if speaker.tokenizer.chat_template else config.prompt
        return [Item("prompt", asked, ())]
    assert config.prompts is not None
    found = distinct_prompts(data.read(config.prompts).items)
    if not found:
        raise AfzalError("there are no prompts", where=config.prompts, remedy="afzal check shows what the file holds")
    return found


def _say_what_is_short(config: GenerateConfig, speaker: Speaker, ids: Sequence[Sequence[int]]) -> None:
    """Name the answers that the model has fewer positions for than ``max_new_tokens``."""
    limits = answer_limits([len(prompt) for prompt in ids], config.max_new_tokens, speaker.context)
    short = [limit for limit in limits if limit < config.max_new_tokens]
    if short:
        print(
            f"note: answers to {len(short)} of {len(ids)} prompts end after at most {min(short)} tokens, "
            f"not {config.max_new_tokens}: the model has {speaker.context} positions for prompt and answer together",
            file=sys.stderr,
        )


def _record(s: Sample, prompts: Sequence[Item], ids: Sequence[Sequence[int]], speaker: Speaker) -> dict[str, Any]:
    asked = prompts[s.prompt_index]
    return {
        "prompt": turns_to_row(asked.prompt),
        "completion": speaker.continuation(ids[s.prompt_index], s.answer.tolist()),
        "tokens": len(s.ids),
        "stop": s.stop,
        **template_fields(asked),
    }


def _shown(record: dict[str, Any]) -> str:
    prompt = record["prompt"]
    head = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False) + "\n"
    return f"{head}{record['completion']}"
