"""Answers of a comparison that a server generates, tokenised here to compute their KL.

A server returns texts. Their KL to the start needs tokens and both models' log-probs, so the texts are tokenised like
training data and scored here. If the tokenizer splits a text differently than the policy did, the KL is that along the
tokenizer's split. Only the tokens before the last one matter, not which token ended the answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afzal.config import CompareConfig, entries
from afzal.config.serving import ServerConfig
from afzal.errors import AfzalError
from afzal.generate import Sample
from afzal.generate.with_server import Answer, ServerQuery, answers_from, policy_server_settings, reload
from afzal.model.load import save_model
from afzal.records import Item, Response
from afzal.servers.client import key_from
from afzal.tokens import ENDLESS, Speaker


@dataclass(frozen=True, slots=True)
class Source:
    """A server that answers with the weights of ``folder``; ``replies`` keeps its replies until all is measured."""

    settings: ServerConfig
    folder: str
    replies: Path


def generator_of(config: CompareConfig) -> ServerConfig | None:
    """The server that generates the answers; None without ``generator``.

    Raises:
        AfzalError: it would answer with the same weights for every policy, or its key is not known.
    """
    if config.generator is None:
        return None
    several = any(e.is_policy and e.kind != "best_of" for e in entries(config))
    server = policy_server_settings(
        config.generator,
        "the answers of all policies" if several else "",
        why="the start and each method are compared by the answers of their own weights",
        alternative="leave generator out",
    )
    key_from(server.key_env)
    return server


def server_path(folder: str | Path) -> str:
    """The absolute path of a model's folder for a server; a hub id is returned unchanged."""
    return str(Path(folder).resolve()) if Path(folder).exists() else str(folder)


@contextmanager
def temporary_model_folder(model: Any, speaker: Speaker, path: Path) -> Iterator[str]:
    """A temporary model folder within the block, since a run's checkpoint cannot be served directly."""
    try:
        save_model(model, speaker.files, path)
        yield server_path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def request_answers(source: Source, query: ServerQuery) -> tuple[list[Sample], list[str]]:
    """The answers as tokens (with EOS if the model emitted it) and as texts, in order of their prompts.

    Raises:
        AfzalError: as for :func:`afzal.generate.with_server.answers_from`, or the server withheld an answer.
    """
    reload(source.settings, source.folder)
    source.replies.parent.mkdir(parents=True, exist_ok=True)
    answers = answers_from(source.settings, query, source.folder, source.replies)
    if withheld := next((a for a in answers if a.stop not in ("eos", "length")), None):
        raise AfzalError(
            f"the server ended answer {withheld.sample} to prompt {withheld.prompt_index} by {withheld.stop!r}",
            where=source.settings.url,
            why="a policy is measured by all its answers, and this one is incomplete",
            remedy="leave the prompt out, or serve the model without a filter",
        )
    assert query.speaker is not None
    return _samples(answers, query, query.speaker), [a.text for a in answers]


def delete_replies(source: Source) -> None:
    """Remove the replies once the measurement is on disk."""
    source.replies.unlink(missing_ok=True)


def _samples(answers: Sequence[Answer], query: ServerQuery, speaker: Speaker) -> list[Sample]:
    items = [Item(str(k), query.prompts[a.prompt_index], (Response(a.text),)) for k, a in enumerate(answers)]
    ids = {t.item_id: t.branches[0].ids for t in speaker.encode(items, max_tokens=ENDLESS).trees}
    samples = []
    for k, a in enumerate(answers):
        # an empty answer is only its end marker, which no data row can be
        end = np.array([speaker.response_end(chat=not isinstance(query.prompts[a.prompt_index], str))], dtype=np.int32)
        tokens = ids.get(str(k), end)
        tokens = tokens if a.stop == "eos" or len(tokens) == 1 else tokens[:-1]
        stop = "eos" if a.stop == "eos" else "length"
        samples.append(Sample(a.prompt_index, tokens, stop, np.full(len(tokens), np.nan, dtype=np.float32)))
    return samples
