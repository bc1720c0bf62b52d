"""Texts written by a model on request: a local model in batches, or a server through the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from afzal.config.revise import ReviseConfig
from afzal.data.turns import full_text
from afzal.records import Message, Turns
from afzal.servers.cache import Cache, Reply, key_of
from afzal.servers.client import server_from
from afzal.servers.requests import Request, fetch_replies

NO_ROOM = "no room"
"""The finish of a text that could not begin because its prompt fills the model's context."""


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A requested text: the model reads ``turns``, and the draws depend on ``draw_key`` and the seed."""

    turns: Turns
    draw_key: str


Write = Callable[[Sequence[TextRequest]], list[Reply]]
"""Writes a text for each request, in order."""


def writer(config: ReviseConfig, replies: Path) -> tuple[Write, Callable[[], bool]]:
    """The writer, and whether it reads conversations; a local model is loaded on first use.

    Args:
        replies: file of a server's replies; each request is sent once.
    """
    return (
        (_local(config), lambda: _reads_conversations(config.model))
        if config.url is None
        else (_served(config, replies), _chat)
    )


def _chat() -> bool:
    return True


@cache
def _reads_conversations(model: str) -> bool:
    from afzal.model.speakers import open_speaker

    return bool(open_speaker(model).tokenizer.chat_template)


def model_input(messages: Sequence[Mapping[str, str]], *, chat: bool) -> Turns:
    """A request as a model reads it: a conversation, or one text to continue."""
    if chat:
        return tuple(Message(m["role"], m["content"]) for m in messages)
    return "\n\n".join(m["content"] for m in messages)


def hash_number(*words: Any) -> int:
    """A hash of the words in [0, 2^31)."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:4], "big") >> 1


def _local(config: ReviseConfig) -> Write:
    from afzal.generate import Sampling, sample
    from afzal.model.load import load_model, pick_device
    from afzal.model.speakers import open_speaker

    sampling = Sampling(config.max_new_tokens, temperature=config.temperature)

    @cache
    def model() -> Any:
        return load_model(config.model, device=pick_device("auto")).requires_grad_(False)

    def write(requests: Sequence[TextRequest]) -> list[Reply]:
        speaker = open_speaker(config.model)
        ids = [p.tolist() for p in speaker.encode_prompts([w.turns for w in requests])]
        replies = [Reply("", NO_ROOM, len(p), 0) for p in ids]
        for chat in (False, True):
            fitting = [
                k
                for k, w in enumerate(requests)
                if isinstance(w.turns, str) != chat and (speaker.context is None or len(ids[k]) < speaker.context)
            ]
            if not fitting:
                continue
            samples = sample(
                model(),
                [ids[k] for k in fitting],
                eos=speaker.ends(chat=chat),
                sampling=sampling,
                seed=config.seed,
                rows_per_batch=config.batch_size,
                numbers=[hash_number(requests[k].draw_key) for k in fitting],
            )
            texts = speaker.continuations([(ids[fitting[s.prompt_index]], s.answer.tolist()) for s in samples])
            for s, text in zip(samples, texts, strict=True):
                k, finish = fitting[s.prompt_index], "length" if s.stop == "length" else "stop"
                replies[k] = Reply(text.strip() if chat else text, finish, len(ids[k]), len(s.ids))
        return replies

    return write


def _served(config: ReviseConfig, replies: Path) -> Write:
    def write(texts: Sequence[TextRequest]) -> list[Reply]:
        server = server_from(config, "writer")
        requests = [_request(config, w) for w in texts]
        with Cache(replies) as cache:
            reply_of = fetch_replies(requests, server.ask, cache, name=config.model, concurrency=config.concurrency)
        return [reply_of[r.key] for r in requests]

    return write


def _request(config: ReviseConfig, text: TextRequest) -> Request:
    turns = (Message("user", text.turns),) if isinstance(text.turns, str) else text.turns
    messages = tuple({"role": m.role, "content": full_text((m,))} for m in turns)
    sampling: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_new_tokens}
    if config.temperature > 0:
        sampling["seed"] = hash_number(config.seed, text.draw_key)
    key_fields = {"kind": "http", "model": config.model, "url": config.url, "writes": True}
    return Request(messages, sampling, key_of({**key_fields, "messages": list(messages), "sampling": sampling}))
