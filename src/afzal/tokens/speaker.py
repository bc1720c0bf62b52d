"""How a model is spoken to: one object that owns its tokenizer, its chat template and the ids that end an answer.

Whatever turns texts into tokens for a model, or its tokens into texts, asks a :class:`Speaker`. So training, both
generation engines, rounds, comparisons, scores and exports cannot disagree about where an answer ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from afzal.errors import AfzalError
from afzal.records import Item, Turns
from afzal.tokens.codec import Codec
from afzal.tokens.encode import Encoded, encode_items, prompt_trees
from afzal.tokens.media import MediaReader
from afzal.tokens.template import Renderer, renderer, resolve_template
from afzal.tokens.tree import Tree

ENDLESS = 1 << 40
"""A limit in tokens that cuts nothing."""


@dataclass(frozen=True, eq=False)
class Speaker:
    """A tokenizer with everything that decides what a model reads and where its answers end.

    The template is resolved when the first conversation is met, so plain texts never need one.

    Attributes:
        tokenizer: a `transformers` tokenizer, fast or slow.
        chat_template: as for :func:`afzal.tokens.resolve_template`; None takes the tokenizer's own, or else ``plain``.
        stated_end: id that a person named as the end of a response. None takes the marker with which the template ends
            a turn, or else the tokenizer's EOS.
        model_ends: ids at which the model's own generation settings stop.
        context: tokens of prompt and answer together that the model has positions for; None when unlimited.
        reader: turns images and sounds into tokens and arrays; None of a model that reads texts alone.
    """

    tokenizer: Any
    chat_template: str | None = None
    stated_end: int | None = None
    model_ends: tuple[int, ...] = ()
    context: int | None = None
    reader: MediaReader | None = None

    @property
    def files(self) -> Any:
        """What writes the files that a saved model needs beside its weights: the processor, or else the tokenizer."""
        return self.tokenizer if self.reader is None else self.reader.processor

    @property
    def codec(self) -> Codec:
        """Texts to ids and back, as exact continuations."""
        return self._codec

    @property
    def renderer(self) -> Renderer:
        """Conversations to texts."""
        return self._renderer

    # Made at the first use; the properties above are what :class:`afzal.tokens.encode.Spoken` asks for.

    @cached_property
    def _codec(self) -> Codec:
        return Codec(self.tokenizer)

    @cached_property
    def _renderer(self) -> Renderer:
        return renderer(self.tokenizer, self.template)

    @cached_property
    def _resolved(self) -> tuple[str, str | None]:
        return resolve_template(self.tokenizer, self.chat_template)

    @property
    def template(self) -> str:
        """The text of the chat template in use."""
        return self._resolved[0]

    @property
    def notice(self) -> str | None:
        """A sentence about the template where it is not simply the tokenizer's own."""
        return self._resolved[1]

    @property
    def bos(self) -> int | None:
        """Id of the tokenizer's BOS."""
        return self.tokenizer.bos_token_id

    def turn_end(self) -> int | None:
        """Id of the marker with which the template ends a turn, or else of the tokenizer's EOS; None without either."""
        marker = self.renderer.ending.marker
        return self.tokenizer.eos_token_id if marker is None else self.tokenizer.convert_tokens_to_ids(marker)

    def response_end(self, *, chat: bool) -> int:
        """Id that ends a response in training data: the stated one, or else that of the template or tokenizer.

        Raises:
            AfzalError: nothing ends a response.
        """
        if self.stated_end is not None:
            return self.stated_end
        end = self.turn_end() if chat else self.tokenizer.eos_token_id
        if end is None:
            raise AfzalError(
                "nothing ends a response: the tokenizer has no EOS token",
                remedy="train with --eos-token, or use a folder whose tokenizer has one",
            )
        return end

    def ends(self, *, chat: bool) -> list[int]:
        """Ids at which generation stops, ascending: the turn's end marker, the tokenizer's EOS, the model's own.

        They are facts about model and template, whatever the answers of some data set end with. A BOS that the model
        names as an end is none in conversations: some templates begin every turn with it.
        """
        ends = {self.tokenizer.eos_token_id, self.stated_end}
        if chat:
            ends.update(set(self.model_ends) - {self.bos}, {self.turn_end()})
        else:
            ends.update(self.model_ends)
        return sorted(i for i in ends if i is not None)

    def end_texts(self, *, chat: bool) -> list[str]:
        """The tokens of :meth:`ends` as texts, for a server that is not told ids; an id without a token has none."""
        return [token for token in self.tokenizer.convert_ids_to_tokens(self.ends(chat=chat)) if token]

    def room(self, max_tokens: int) -> int:
        """``max_tokens``, or the model's context where that is less."""
        return max_tokens if self.context is None else min(max_tokens, self.context)

    def empty_prompt(self) -> list[int]:
        """What stands for an empty prompt: whatever begins a document."""
        return list(self.codec.head) or [self.bos if self.bos is not None else self.response_end(chat=False)]

    def encode(self, items: Sequence[Item], *, max_tokens: int) -> Encoded:
        """One tree per item: :func:`afzal.tokens.encode.encode_items`."""
        return encode_items(items, self, max_tokens)

    def encode_prompts(
        self, prompts: Sequence[Turns | Item], *, max_tokens: int = ENDLESS, remarks: Counter[str] | None = None
    ) -> list[np.ndarray]:
        """Ids (int32 ``[P]``) of each prompt of texts: the prompts of :meth:`prompt_trees`.

        Raises:
            AfzalError: a prompt cannot be rendered, or shows an image or a sound, which ids alone do not hold.
        """
        trees = self.prompt_trees(prompts, max_tokens=max_tokens, remarks=remarks)
        if any(t.media for t in trees):
            raise AfzalError("a prompt has images or sounds, and only texts can be read here", remedy="leave it out")
        return [t.prompt for t in trees]

    def prompt_trees(
        self, prompts: Sequence[Turns | Item], *, max_tokens: int = ENDLESS, remarks: Counter[str] | None = None
    ) -> list[Tree]:
        """A tree without branches for each prompt: :func:`afzal.tokens.encode.prompt_trees`."""
        return prompt_trees(prompts, self, max_tokens, remarks)

    def drops_blank(self) -> bool:
        """Whether an answer that is decoded without its prompt lacks the blank before its first word, as SentencePiece
        has it."""
        (ids,) = self.codec.continuations([" a"], markers=False)
        return ids is not None and self.codec.decode([ids]) != [" a"]

    def continuation(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ``ids`` add after ``before``; unlike ``decode(ids)`` it keeps a leading space."""
        return self.continuations([(before, ids)])[0]

    def continuations(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str]:
        """:meth:`continuation` of each ``(before, ids)``, with the tokenizer asked about all of them at once."""
        added = self.codec.after(pairs)
        plain = iter(self.codec.decode([ids for (_, ids), text in zip(pairs, added, strict=True) if text is None]))
        texts = [next(plain) if text is None else text for text in added]
        return [self.codec.unspaced(before, text) for (before, _), text in zip(pairs, texts, strict=True)]


def any_chat(items: Iterable[Item]) -> bool:
    """Whether one of the items is a conversation, so that the chat template decides where answers end."""
    return any(item.is_chat for item in items)


def encode(
    items: Sequence[Item],
    tokenizer: Any,
    *,
    max_tokens: int,
    chat_template: str | None = None,
    eos: int | None = None,
) -> Encoded:
    """One tree per item, by a speaker made for this call: see :class:`Speaker` and its :meth:`~Speaker.encode`.

    Args:
        eos: id that ends a response, ``stated_end`` of the speaker.
    """
    return Speaker(tokenizer, chat_template, eos).encode(items, max_tokens=max_tokens)
