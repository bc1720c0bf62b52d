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
from afzal.folders.kinds import base_of, is_adapter
from afzal.folders.load import load_config, load_generation_config, model_folder
from afzal.generate import Sample, Sampling, answer_limits, choose_decoding, sample, sample_with_vllm
from afzal.model.load import context_tokens, load_model, load_tokenizer, pick_device
from afzal.records import Item, Message, template_fields, turns_to_json
from afzal.tokens import continuation, distinct_prompts, encode_prompts, end_ids, resolve_template

_ENDLESS = 1 << 40  # tokens: no prompt is cut


def generate(config: GenerateConfig) -> Path | None:
    """Sample ``config.n`` answers per prompt; write them as JSONL, or print them when there is no ``config.out``.

    A single ``prompt`` is sent through the chat template when the model has one, and continued verbatim otherwise;
    prompts of a file keep the kind they have there.

    Raises:
        AfzalError: model or prompts cannot be read, or ``config.out`` exists.
    """
    runs.refuse_existing(config.out)
    tokenizer = load_tokenizer(config.model)
    prompts = _prompts(config, tokenizer)
    template = resolve_template(tokenizer)[0] if any(p.is_chat for p in prompts) else None
    ids = [p.tolist() for p in encode_prompts(prompts, tokenizer, max_tokens=_ENDLESS)]
    _say_what_is_short(config, ids)
    drawn = _draw(config, tokenizer, template, ids)
    records = [_record(s, prompts, ids, tokenizer) for s in drawn]
    if config.out is None:
        for record in records:
            print(_shown(record))
        return None
    runs.append_jsonl(Path(config.out), records)
    return Path(config.out)


def _draw(config: GenerateConfig, tokenizer: Any, template: str | None, ids: Sequence[Sequence[int]]) -> list[Sample]:
    sampling = Sampling(
        config.max_new_tokens, config.temperature, config.top_p, config.top_k or 0, config.min_new_tokens
    )
    if config.engine == "vllm":
        print("note: Afzal has been tested with a stand-in for vLLM only, never with vLLM itself", file=sys.stderr)
        eos = end_ids(_generation_settings(config.model), tokenizer, template=template)
        return sample_with_vllm(config.model, ids, eos=eos, n=config.n, sampling=sampling, seed=config.seed)
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    model = load_model(config.model, device=pick_device("auto"), dtype=dtype)
    longest = max(map(len, ids)) + config.max_new_tokens
    decoding, reason = ("stock", "") if config.engine == "stock" else choose_decoding(model, longest)
    if reason:
        print(f"note: prompts are read once per answer, since {reason}", file=sys.stderr)
    return sample(
        model,
        ids,
        eos=end_ids(model.generation_config, tokenizer, template=template),
        n=config.n,
        sampling=sampling,
        seed=config.seed,
        rows_per_batch=config.batch_size,
        decoding=decoding,
    )


def _generation_settings(model: str) -> Any:
    """The generation settings that a model would have if it were loaded here: those of its folder, of an adapter
    without any those of its base model, else what its configuration says."""
    from transformers import GenerationConfig

    folder = model_folder(model)
    if (Path(folder) / "generation_config.json").exists():
        return load_generation_config(folder)
    if is_adapter(folder):
        return _generation_settings(base_of(folder))
    return GenerationConfig.from_model_config(load_config(folder))


def _prompts(config: GenerateConfig, tokenizer: Any) -> list[Item]:
    """The different prompts, as items without responses."""
    if config.prompt is not None:
        asked = (Message("user", config.prompt),) if tokenizer.chat_template else config.prompt
        return [Item("prompt", asked, ())]
    assert config.prompts is not None
    found = distinct_prompts(data.read(config.prompts).items)
    if not found:
        raise AfzalError("there are no prompts", where=config.prompts, remedy="afzal check shows what the file holds")
    return found


def _say_what_is_short(config: GenerateConfig, ids: Sequence[Sequence[int]]) -> None:
    """Name the answers that the model has fewer positions for than ``max_new_tokens``."""
    context = context_tokens(config.model)
    limits = answer_limits([len(prompt) for prompt in ids], config.max_new_tokens, context)
    short = [limit for limit in limits if limit < config.max_new_tokens]
    if short:
        print(
            f"note: answers to {len(short)} of {len(ids)} prompts end after at most {min(short)} tokens, "
            f"not {config.max_new_tokens}: the model has {context} positions for prompt and answer together",
            file=sys.stderr,
        )


def _record(s: Sample, prompts: Sequence[Item], ids: Sequence[Sequence[int]], tokenizer: Any) -> dict[str, Any]:
    asked = prompts[s.prompt_index]
    return {
        "prompt": turns_to_json(asked.prompt),
        "completion": continuation(tokenizer, ids[s.prompt_index], s.answer.tolist()),
        "tokens": len(s.ids),
        "stop": s.stop,
        **template_fields(asked),
    }


def _shown(record: dict[str, Any]) -> str:
    prompt = record["prompt"]
    head = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False) + "\n"
    return f"{head}{record['completion']}"
