"""The speaker of a model: one object that holds its tokenizer, its chat template and the ids that end an answer.

All code that turns texts into tokens for a model, or its tokens into texts, uses a :class:`Speaker`. So training, both
generation engines, rounds, comparisons, scores and exports agree on where an answer ends.
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
"""A token limit that never cuts."""


@dataclass(frozen=True, eq=False)
class Speaker:
    """A tokenizer with everything that determines a model's input and the end of its answers.

    The template is resolved at the first conversation, so plain texts never need one.

    Attributes:
        tokenizer: a `transformers` tokenizer, fast or slow.
        chat_template: as for :func:`afzal.tokens.resolve_template`; None takes the tokenizer's own, or else ``plain``.
        stated_end: id that the user set as the end of a response. None takes the template's end-of-turn marker, or else
            the tokenizer's EOS.
        model_ends: ids at which the model's own generation settings stop.
        context: the model's maximum length of prompt and answer together, in tokens; None if unlimited.
        reader: turns images and sounds into tokens and arrays; None for a text-only model.
    """

    tokenizer: Any
    chat_template: str | None = None
    stated_end: int | None = None
    model_ends: tuple[int, ...] = ()
    context: int | None = None
    reader: MediaReader | None = None

    @property
    def files(self) -> Any:
        """The object that saves the files a model needs in addition to its weights: the processor, or else the
        tokenizer."""
        return self.tokenizer if self.reader is None else self.reader.processor

    @property
    def codec(self) -> Codec:
        """Encodes and decodes texts, as exact continuations."""
        return self._codec

    @property
    def renderer(self) -> Renderer:
        """Renders conversations as texts."""
        return self._renderer

    # Created on first use. The properties above implement :class:`afzal.tokens.encode.SpeakerProtocol`.

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
        """A sentence about the template if it is not the tokenizer's own; else None."""
        return self._resolved[1]

    @property
    def bos(self) -> int | None:
        """Id of the tokenizer's BOS."""
        return self.tokenizer.bos_token_id

    def turn_end(self) -> int | None:
        """Id of the template's end-of-turn marker, or else of the tokenizer's EOS; None without either."""
        marker = self.renderer.ending.marker
        return self.tokenizer.eos_token_id if marker is None else self.tokenizer.convert_tokens_to_ids(marker)

    def response_end(self, *, chat: bool) -> int:
        """Id that ends a response in training data: the stated one, or else the template's or tokenizer's.

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

        They depend only on model and template, not on how a data set's answers end. A BOS that the model lists as an
        end is ignored in conversations, since some templates begin every turn with it.
        """
        ends = {self.tokenizer.eos_token_id, self.stated_end}
        if chat:
            ends.update(set(self.model_ends) - {self.bos}, {self.turn_end()})
        else:
            ends.update(self.model_ends)
        return sorted(i for i in ends if i is not None)

    def end_texts(self, *, chat: bool) -> list[str]:
        """The tokens of :meth:`ends` as texts, for servers that take stop texts instead of ids; ids without a token are
        left out."""
        return [token for token in self.tokenizer.convert_ids_to_tokens(self.ends(chat=chat)) if token]

    def limit_tokens(self, max_tokens: int) -> int:
        """``max_tokens``, or the model's context if that is less."""
        return max_tokens if self.context is None else min(max_tokens, self.context)

    def empty_prompt(self) -> list[int]:
        """The ids for an empty prompt: those that begin a document."""
        return list(self.codec.prefix_ids) or [self.bos if self.bos is not None else self.response_end(chat=False)]

    def encode(self, items: Sequence[Item], *, max_tokens: int) -> Encoded:
        """Encode each item as one tree: :func:`afzal.tokens.encode.encode_items`."""
        return encode_items(items, self, max_tokens)

    def encode_prompts(
        self, prompts: Sequence[Turns | Item], *, max_tokens: int = ENDLESS, remarks: Counter[str] | None = None
    ) -> list[np.ndarray]:
        """Ids (int32 ``[P]``) of each text prompt: the prompts of :meth:`prompt_trees`.

        Raises:
            AfzalError: a prompt cannot be rendered, or has an image or a sound, which ids alone cannot represent.
        """
        trees = self.prompt_trees(prompts, max_tokens=max_tokens, remarks=remarks)
        if any(t.media for t in trees):
            raise AfzalError("a prompt has images or sounds, but only text can be read here", remedy="leave it out")
        return [t.prompt for t in trees]

    def prompt_trees(
        self, prompts: Sequence[Turns | Item], *, max_tokens: int = ENDLESS, remarks: Counter[str] | None = None
    ) -> list[Tree]:
        """A tree without branches for each prompt: :func:`afzal.tokens.encode.prompt_trees`."""
        return prompt_trees(prompts, self, max_tokens, remarks)

    def drops_blank(self) -> bool:
        """Whether decoding an answer without its prompt loses the space before its first word, as with
        SentencePiece."""
        (ids,) = self.codec.continuations([" a"], markers=False)
        return ids is not None and self.codec.decode([ids]) != [" a"]

    def continuation(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ``ids`` add after ``before``; unlike ``decode(ids)`` it keeps a leading space."""
        return self.continuations([(before, ids)])[0]

    def continuations(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str]:
        """:meth:`continuation` of each ``(before, ids)``, decoded in one batch."""
        added = self.codec.added_texts(pairs)
        plain = iter(self.codec.decode([ids for (_, ids), text in zip(pairs, added, strict=True) if text is None]))
        texts = [next(plain) if text is None else text for text in added]
        return [self.codec.unspaced(before, text) for (before, _), text in zip(pairs, texts, strict=True)]


def any_chat(items: Iterable[Item]) -> bool:
    """Whether any item is a conversation, so that the chat template determines where answers end."""
    return any(item.is_chat for item in items)


def encode(
    items: Sequence[Item],
    tokenizer: Any,
    *,
    max_tokens: int,
    chat_template: str | None = None,
    eos: int | None = None,
) -> Encoded:
    """Encode each item as one tree with a temporary speaker: see :meth:`Speaker.encode`.

    Args:
        eos: id that ends a response, the speaker's ``stated_end``.
    """
    return Speaker(tokenizer, chat_template, eos).encode(items, max_tokens=max_tokens)
