"""Chat partners: a run and, alongside it, the model that it started from, answering token by token."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Lock
from typing import Literal, NamedTuple

import torch

from afzal import runs
from afzal.config import ChatConfig
from afzal.generate.rows import Row
from afzal.generate.sample import prompt_ids, sample
from afzal.generate.token_sampling import Sampling
from afzal.media import MediaKind
from afzal.model.load import load_model, pick_device
from afzal.model.speakers import open_speaker
from afzal.records import Item, Message, Turns, as_text
from afzal.tokens import Speaker, Tree

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # result of decoding an incomplete character


class ChatReply(NamedTuple):
    """A model's answer: text, number of tokens, and why it ended (``stopped``: by the user)."""

    text: str
    tokens: int
    stop: Literal["eos", "length", "stopped"]


class _Stopped(Exception):  # noqa: N818
    """The user stopped the answer."""


class ChatModel:
    """A model that answers a conversation, one answer at a time.

    Args:
        path: a run folder, a model folder or a hub id.
        name: display name.
    """

    def __init__(self, path: str, name: str, config: ChatConfig) -> None:
        self.name, self.speaker = name, open_speaker(path)
        dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
        self._model = load_model(path, device=pick_device("auto"), dtype=dtype)
        self._sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.top_k or 0)
        self._seed, self._lock = config.seed, Lock()

    @property
    def continues_text(self) -> bool:
        """Whether the model has no chat template and so continues the conversation as plain text."""
        return not self.speaker.tokenizer.chat_template

    @property
    def reads(self) -> frozenset[MediaKind]:
        """The kinds of media that the model reads; none if it continues plain text."""
        reader = None if self.continues_text else self.speaker.reader
        return frozenset(reader.markers() if reader else ())

    def answer(
        self, turns: Sequence[Message], number: int, on_text: Callable[[int, str], None], stop: Event
    ) -> ChatReply:
        """Continue a conversation that ends with the user's turn.

        The same model, conversation, settings and number give the same answer, with or without another model alongside.

        Args:
            number: number of the answer since the chat began, on which its random draws depend.
            on_text: called as the answer grows, with the number of characters to keep and the text that follows them.
            stop: set when the user stops the answer.

        Raises:
            AfzalError: the conversation leaves no position for an answer, or cannot be rendered.
        """
        prompt = self._prompt(turns)
        ids = prompt_ids(prompt)
        text, ends = StreamedText(self.speaker, ids, on_text), self.speaker.ends(chat=not self.continues_text)

        def token(row: Row, drawn: int) -> None:
            if drawn not in ends:
                text.add(drawn)
            if stop.is_set():
                raise _Stopped

        with self._lock:
            try:
                (drawn_answer,) = sample(
                    self._model,
                    [prompt],
                    eos=ends,
                    sampling=self._sampling,
                    seed=self._seed,
                    numbers=[number],
                    on_token=token,
                )
            except (_Stopped, KeyboardInterrupt):
                return ChatReply(text.full_text(), len(text.ids), "stopped")
        text.replace(drawn_answer.answer.tolist())
        return ChatReply(text.full_text(), len(drawn_answer.ids), drawn_answer.stop)

    def _prompt(self, turns: Sequence[Message]) -> Tree:
        conversation: Turns = as_text(turns) if self.continues_text else tuple(turns)
        return self.speaker.prompt_trees([Item("chat", conversation, ())])[0]


class StreamedText:
    """The text of an answer as its tokens arrive; a character with missing bytes is held back."""

    def __init__(self, speaker: Speaker, before: Sequence[int], on_text: Callable[[int, str], None]) -> None:
        self._speaker, self._before, self._on_text = speaker, before, on_text
        self.ids: list[int] = []
        self._shown = ""

    def add(self, token: int) -> None:
        """Add a token and report the settled text."""
        self.ids.append(token)
        self._report(self.full_text().rstrip(_UNFINISHED))

    def replace(self, ids: list[int]) -> None:
        """Replace the tokens by the final answer without its end token, and report it."""
        self.ids = ids
        self._report(self.full_text())

    def full_text(self) -> str:
        """The text of all tokens so far."""
        return self._speaker.continuation(self._before, self.ids) if self.ids else ""

    def _report(self, text: str) -> None:
        if text == self._shown:
            return
        pairs = enumerate(zip(text, self._shown, strict=False))
        keep = next((k for k, (a, b) in pairs if a != b), min(len(text), len(self._shown)))
        self._on_text(keep, text[keep:])
        self._shown = text


def load_chat_models(config: ChatConfig, say: Callable[[str], None]) -> list[ChatModel]:
    """The models of a chat: the named one and, unless ``alone`` is set, the other one.

    Args:
        say: called with a sentence if there is no second model.

    Raises:
        AfzalError: a model cannot be loaded.
    """
    second = config.against or (None if config.alone else start_of(config.model))
    if second is None and not config.alone:
        say(f"{config.model} names no starting model that still exists, so it answers alone (--against OTHER)")
    paths = [config.model, *([second] if second is not None else [])]
    return [ChatModel(path, name, config) for path, name in zip(paths, names_of(paths), strict=True)]


def names_of(paths: Sequence[str]) -> list[str]:
    """Display names of models: their paths, relative if below the current folder; equal names are made distinct."""
    relative = [os.path.relpath(path) if Path(path).is_absolute() and Path(path).exists() else path for path in paths]
    names = [path if name.startswith("..") else name for name, path in zip(relative, paths, strict=True)]
    return [name if names.index(name) == k else f"{name} (again)" for k, name in enumerate(names)]


def start_of(path: str) -> str | None:
    """The model that a run started from; None if the folder is not a run or the model no longer exists."""
    start = runs.start_of(path)
    return start if start and Path(start).is_dir() else None
