"""Answers of a comparison that a server writes in place of this process, as tokens by which their KL is taken here.

A server gives texts. Their KL to the start needs tokens and the log-probs of both models, so the texts become tokens as
training data do, and the models score them here. Where a tokenizer writes a text in another way than the policy did, it
is the KL along the other way. What stands before the last token alone matters, and not which token ended the answer.
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
from afzal.generate.served import Answer, Asked, answers_from, follower, reload
from afzal.model.load import save_model
from afzal.records import Item, Response
from afzal.servers.client import key_from
from afzal.tokens import ENDLESS, Speaker


@dataclass(frozen=True, slots=True)
class Source:
    """A server that answers with the weights of ``folder``; ``replies`` keeps what it said until all is measured."""

    settings: ServerConfig
    folder: str
    replies: Path


def generator_of(config: CompareConfig) -> ServerConfig | None:
    """The server that writes the answers, where one does.

    Raises:
        AfzalError: it would answer with the same weights for every policy; or its key is not known.
    """
    if config.generator is None:
        return None
    several = any(e.is_policy and e.kind != "best_of" for e in entries(config))
    found = follower(
        config.generator,
        "the answers of all policies" if several else "",
        why="the start and each method are compared by the answers of their own weights",
        instead="leave generator out",
    )
    key_from(found.key_env)
    return found


def place_of(folder: str | Path) -> str:
    """A model's folder as a server is to find it; a hub id as it is."""
    return str(Path(folder).resolve()) if Path(folder).exists() else str(folder)


@contextmanager
def written(model: Any, speaker: Speaker, path: Path) -> Iterator[str]:
    """A folder of the model as it is, for as long as the block lasts: a checkpoint of a run is none that is served."""
    try:
        save_model(model, speaker.files, path)
        yield place_of(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def ask(source: Source, asked: Asked) -> tuple[list[Sample], list[str]]:
    """The answers as tokens, with the end marker where one ended by itself, and as texts; in order of their prompts.

    Raises:
        AfzalError: as for :func:`afzal.generate.served.answers_from`; or the server withheld an answer.
    """
    reload(source.settings, source.folder)
    source.replies.parent.mkdir(parents=True, exist_ok=True)
    answers = answers_from(source.settings, asked, source.folder, source.replies)
    if withheld := next((a for a in answers if a.stop not in ("eos", "length")), None):
        raise AfzalError(
            f"the server ended answer {withheld.sample} to prompt {withheld.prompt_index} by {withheld.stop!r}",
            where=source.settings.url,
            why="a policy is measured by all of its answers, and this one is not whole",
            remedy="leave the prompt out, or serve the model without a filter",
        )
    assert asked.speaker is not None
    return _samples(answers, asked, asked.speaker), [a.text for a in answers]


def forget(source: Source) -> None:
    """Remove the replies, once what was made of them is on disk."""
    source.replies.unlink(missing_ok=True)


def _samples(answers: Sequence[Answer], asked: Asked, speaker: Speaker) -> list[Sample]:
    items = [Item(str(k), asked.prompts[a.prompt_index], (Response(a.text),)) for k, a in enumerate(answers)]
    ids = {t.item_id: t.branches[0].ids for t in speaker.encode(items, max_tokens=ENDLESS).trees}
    found = []
    for k, a in enumerate(answers):
        # an answer without a text is its end marker alone, which no row of data is
        end = np.array([speaker.response_end(chat=not isinstance(asked.prompts[a.prompt_index], str))], dtype=np.int32)
        own = ids.get(str(k), end)
        own = own if a.stop == "eos" or len(own) == 1 else own[:-1]
        stop = "eos" if a.stop == "eos" else "length"
        found.append(Sample(a.prompt_index, own, stop, np.full(len(own), np.nan, dtype=np.float32)))
    return found
