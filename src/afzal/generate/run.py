"""``afzal generate``: a saved model's answers to prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from afzal import data, runs
from afzal.config import GenerateConfig
from afzal.config.serving import is_server
from afzal.errors import AfzalError
from afzal.generate import Sample, Sampling, answer_limits, choose_decoding, sample, sample_with_vllm
from afzal.generate.with_server import ServerQuery, answers_from, read_server
from afzal.model.load import load_model, pick_device
from afzal.model.speakers import open_speaker
from afzal.records import TEMPLATE_FIELDS, Item, Message, template_fields, turns_to_json, turns_to_row
from afzal.servers.cache import REPLIES
from afzal.tokens import Speaker, Tree, any_chat, distinct_prompts


def generate(config: GenerateConfig) -> Path | None:
    """Sample ``config.n`` answers per prompt; write them as JSONL, or print them without ``config.out``.

    Raises:
        AfzalError: as for :func:`answers`.
    """
    records = answers(config)
    if config.out is None:
        for record in records:
            print(_as_text(record))
        return None
    return Path(config.out)


def answers(config: GenerateConfig) -> list[dict[str, Any]]:
    """``config.n`` sampled answers per prompt, one record each; also written as JSONL if ``config.out`` is set.

    A single ``prompt`` goes through the chat template if the model has one, and is continued verbatim otherwise;
    prompts of a file keep their kind. Other columns of a prompt's row are copied to its answers, except those that
    would make the answers read as another format.

    Raises:
        AfzalError: model or prompts cannot be read, or ``config.out`` exists or is being written by another process.
    """
    with runs.sole_file(config.out):
        records = _as_answers(_served(config) if is_server(config.model) else _sampled(config))
        if config.out is not None:
            runs.write_jsonl(config.out, records)
            _replies(config).unlink(missing_ok=True)
        return records


def _sampled(config: GenerateConfig) -> list[dict[str, Any]]:
    speaker = open_speaker(config.model)
    prompts = _prompts(config, chat=bool(speaker.tokenizer.chat_template))
    trees = speaker.prompt_trees(prompts)
    ids = [t.prompt.tolist() for t in trees]
    _note_short_answers(config, speaker, ids)
    samples = _draw(config, speaker.ends(chat=any_chat(prompts)), trees)
    prompts = _with_media_to_name(config, prompts)
    return [
        _record(
            prompts[s.prompt_index], speaker.continuation(ids[s.prompt_index], s.answer.tolist()), len(s.ids), s.stop
        )
        for s in samples
    ]


def _served(config: GenerateConfig) -> list[dict[str, Any]]:
    """A server's answers. Each is requested once; replies are kept next to ``config.out`` until all have arrived."""
    settings = read_server(config.model)
    speaker = open_speaker(settings.folder) if settings.folder is not None else None
    prompts = _prompts(config, chat=speaker is None or bool(speaker.tokenizer.chat_template))
    turns = [item.prompt for item in prompts]
    ids = [t.prompt.tolist() for t in speaker.prompt_trees(prompts)] if speaker is not None else None
    if speaker is None or ids is None:
        print("note: no folder is named, so the server's own end marks and template apply", file=sys.stderr)
    else:
        _note_short_answers(config, speaker, ids)
    query = ServerQuery(turns, config.n, _sampling(config), config.seed, speaker, ids)
    with TemporaryDirectory() as spare:
        cache = _replies(config) if config.out is not None else Path(spare) / REPLIES
        answers = answers_from(settings, query, settings.folder or "", cache)
    prompts = _with_media_to_name(config, prompts)
    return [_record(prompts[a.prompt_index], a.text, a.tokens, a.stop) for a in answers]


def _with_media_to_name(config: GenerateConfig, prompts: list[Item]) -> list[Item]:
    """The prompts with media that ``config.out`` can name, which are copied next to it if necessary."""
    return prompts if config.out is None else data.with_copied_media(prompts, Path(config.out).parent)


def _replies(config: GenerateConfig) -> Path:
    """The file of a server's replies for an unfinished command."""
    return Path(f"{config.out}.{REPLIES}")


def _sampling(config: GenerateConfig) -> Sampling:
    return Sampling(config.max_new_tokens, config.temperature, config.top_p, config.top_k or 0, config.min_new_tokens)


def _draw(config: GenerateConfig, eos: Sequence[int], trees: Sequence[Tree]) -> list[Sample]:
    ids = [t.prompt.tolist() for t in trees]
    sampling = _sampling(config)
    has_media = any(t.media for t in trees)
    if config.engine == "vllm":
        if has_media:
            raise AfzalError("vLLM receives only text, and prompts show images or sounds", remedy="--engine stock")
        print("note: Afzal has been tested only with a stand-in for vLLM, never with vLLM itself", file=sys.stderr)
        return sample_with_vllm(config.model, ids, eos=eos, n=config.n, sampling=sampling, seed=config.seed)
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    model = load_model(config.model, device=pick_device("auto"), dtype=dtype)
    longest = max(map(len, ids)) + config.max_new_tokens
    decoding, reason = ("stock", "") if has_media or config.engine == "stock" else choose_decoding(model, longest)
    if reason:
        print(f"note: prompts are read once per answer, since {reason}", file=sys.stderr)
    return sample(
        model,
        trees,
        eos=eos,
        n=config.n,
        sampling=sampling,
        seed=config.seed,
        rows_per_batch=config.batch_size,
        decoding=decoding,
    )


def _prompts(config: GenerateConfig, *, chat: bool) -> list[Item]:
    """The distinct prompts as items without responses; ``chat`` turns a single prompt into a message.

    Other columns of their rows stay in ``extra`` if all rows of a prompt agree.
    """
    if config.prompt is not None:
        prompt = (Message("user", config.prompt),) if chat else config.prompt
        return [Item("prompt", prompt, ())]
    assert config.prompts is not None
    items = data.read(config.prompts, request=data.ColumnRequest(takes_all=True)).items
    prompts = distinct_prompts(items)
    if not prompts:
        raise AfzalError("there are no prompts", where=config.prompts, remedy="afzal check shows what the file holds")
    agreed: dict[str, dict[str, Any]] = {}
    for item in items:
        agreed_columns = agreed.setdefault(_question(item), dict(item.extra))
        for name in [name for name, value in agreed_columns.items() if item.extra.get(name) != value]:
            del agreed_columns[name]
    return [replace(item, extra=agreed[_question(item)]) for item in prompts]


def _question(item: Item) -> str:
    return json.dumps([turns_to_json(item.prompt), template_fields(item)], sort_keys=True, default=str)


def _note_short_answers(config: GenerateConfig, speaker: Speaker, ids: Sequence[Sequence[int]]) -> None:
    """Note the answers for which the model has fewer positions than ``max_new_tokens``."""
    limits = answer_limits([len(prompt) for prompt in ids], config.max_new_tokens, speaker.context)
    short = [limit for limit in limits if limit < config.max_new_tokens]
    if short:
        print(
            f"note: answers to {len(short)} of {len(ids)} prompts end after at most {min(short)} tokens, "
            f"not {config.max_new_tokens}: the model has {speaker.context} positions for prompt and answer together",
            file=sys.stderr,
        )


def _record(item: Item, text: str, tokens: int | None, stop: str) -> dict[str, Any]:
    record = {"prompt": turns_to_row(item.prompt), "completion": text, "tokens": tokens, "stop": stop}
    columns = {name: value for name, value in item.extra.items() if name not in record}
    return record | columns


_OWN = frozenset({"prompt", "completion", "tokens", "stop", *TEMPLATE_FIELDS})


def _as_answers(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without columns, such as ``label``, that would make them read as another format."""
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        for name in record:
            if name not in _OWN:
                first.setdefault(name, record)
    misread = set()
    for name, record in first.items():
        plain = {key: value for key, value in record.items() if key in _OWN} | {"completion": "an answer"}
        if name not in data.ignorable_columns(plain, {name: record[name]}):
            misread.add(name)
    if misread:
        left_out, renamed = ", ".join(sorted(misread)), f"reference_{min(misread)}"
        why = "with them the rows would not be read as answers"
        print(f"note: left out of the answers: {left_out}; {why} (a column called {renamed} stays)", file=sys.stderr)
    return [{name: value for name, value in record.items() if name not in misread} for record in records]


def _as_text(record: dict[str, Any]) -> str:
    prompt = record["prompt"]
    head = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False) + "\n"
    return f"{head}{record['completion']}"
