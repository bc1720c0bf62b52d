"""Encode items as token trees, and record every dropped or shortened row.

Guarantees for every tree: all branches follow exactly the same prompt ids, which are also used for generation; the
scored ids decode to the assistant's text and its end marker, and nothing else; there is exactly one EOS, at the end,
unless the response was cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from afzal.drops import Drop
from afzal.errors import AfzalError
from afzal.records import Item, Preference, Turns, labels, preferences, scores
from afzal.tokens.assistant_turns import SPELLED, remark_texts
from afzal.tokens.codec import Codec
from afzal.tokens.layout import Chunk, Conversation, Layout, chat_layout, conversation, mentions, text_layout
from afzal.tokens.media import MediaReader
from afzal.tokens.segment_encoding import (
    EncodedAnswer,
    encode_continuation,
    encode_jointly,
    encode_segments,
    failure_reason,
    respects_markers,
)
from afzal.tokens.template import Renderer, TurnError
from afzal.tokens.tree import Branch, Tree
from afzal.tokens.truncation import truncate_prompt, truncate_tree

_BLOCK = 512


class SpeakerProtocol(Protocol):
    """The part of :class:`afzal.tokens.speaker.Speaker` that this module needs; the speaker imports this module."""

    @property
    def codec(self) -> Codec: ...
    @property
    def renderer(self) -> Renderer: ...
    @property
    def reader(self) -> MediaReader | None: ...
    @property
    def bos(self) -> int | None: ...
    def response_end(self, *, chat: bool) -> int: ...
    def empty_prompt(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """Trees, and the drops, cuts and remarks of their encoding.

    ``len(trees)`` plus the number of drops whose ``unit`` is ``item`` is the number of input items. ``indices``
    holds the item index of each tree. ``remarks`` counts items by change to their texts
    (:data:`afzal.tokens.assistant_turns.REMARKS`).
    """

    trees: list[Tree]
    drops: list[Drop]
    cuts: list[Drop]
    remarks: Counter[str] = field(default_factory=Counter)
    indices: tuple[int, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The remarks as sentences."""
        return remark_texts(self.remarks)

    def counts(self, action: Literal["dropped", "cut"]) -> dict[str, int]:
        """Drops or cuts per reason, most frequent first."""
        losses = self.drops if action == "dropped" else self.cuts
        return dict(Counter(loss.reason for loss in losses).most_common())


def encode_items(items: Sequence[Item], speaker: SpeakerProtocol, max_tokens: int) -> Encoded:
    """Encode each item as one tree.

    Args:
        max_tokens: limit for the prompt and any one branch together, see :func:`afzal.tokens.truncation.truncate_tree`.

    Raises:
        AfzalError: ``max_tokens`` is below 2, or there is no token to end a response.
    """
    if max_tokens < 2:
        raise AfzalError(f"max_tokens is {max_tokens}: no room for a prompt and a response", remedy="max_tokens=512")
    remarks: Counter[str] = Counter()
    trees: list[Tree] = []
    drops: list[Drop] = []
    cuts: list[Drop] = []
    indices: list[int] = []
    for start in range(0, len(items), _BLOCK):
        block = _encode_block(items[start : start + _BLOCK], speaker, max_tokens, remarks)
        for n, (tree, losses) in enumerate(block, start):
            trees += [tree] if tree else []
            indices += [n] if tree else []
            drops += [loss for loss in losses if loss.action == "dropped"]
            cuts += [loss for loss in losses if loss.action == "cut"]
    if speaker.codec.specials is not None and (n := sum(mentions(item, speaker.codec.specials) for item in items)):
        remarks[SPELLED] = n
    return Encoded(trees, drops, cuts, remarks, tuple(indices))


def prompt_trees(
    prompts: Sequence[Turns | Item], speaker: SpeakerProtocol, max_tokens: int, remarks: Counter[str] | None = None
) -> list[Tree]:
    """Trees without branches, for generation; their ids and media equal those of :func:`encode_items` for equal
    prompts.

    Args:
        prompts: an item means its prompt with its row's template fields (``tools`` ...).
        max_tokens: longer prompts lose their left end, except for the BOS.
        remarks: counts the template's changes to the conversations.

    Raises:
        AfzalError: a prompt cannot be rendered.
    """
    remarks = Counter() if remarks is None else remarks
    layouts: list[Layout] = []
    for start in range(0, len(prompts), _BLOCK):
        block = [p if isinstance(p, Item) else Item("", p, ()) for p in prompts[start : start + _BLOCK]]
        for n, layout in enumerate(_layouts([replace(item, responses=()) for item in block], speaker, remarks), start):
            if isinstance(layout, TurnError):
                message, remedy = f"this prompt has no tokens: {layout}", "leave it out, or change its text"
                raise AfzalError(message, where=block[n - start].where or f"prompt {n}", remedy=remedy) from layout
            layouts.append(layout)
    table = encode_jointly(layouts, speaker.codec)
    ids = [_prompt_ids(layout, speaker, table) for layout in layouts]
    for n, prompt in enumerate(ids):
        if prompt is None:
            message = "a special token spelled out in this prompt cannot become plain text"
            raise AfzalError(message, where=f"prompt {n}", remedy="leave the prompt out")
    names = [p.id if isinstance(p, Item) else str(n) for n, p in enumerate(prompts)]
    cut = [np.asarray(truncate_prompt(prompt or [], max_tokens, speaker.bos), dtype=np.int32) for prompt in ids]
    for layout, prompt, short in zip(layouts, ids, cut, strict=True):
        if layout.media and len(short) < len(prompt or []):
            message, remedy = "a prompt with images or sounds is longer than the limit", "a larger max_tokens"
            raise AfzalError(message, why=f"{len(prompt or [])} tokens, {max_tokens} allowed", remedy=remedy)
    return [
        _with_media(Tree(name, short, ()), layout, speaker)
        for name, short, layout in zip(names, cut, layouts, strict=True)
    ]


def _with_media(tree: Tree, layout: Layout, speaker: SpeakerProtocol) -> Tree:
    """The tree with the images and sounds of its prompt."""
    reader = speaker.reader
    if reader is None:
        return tree
    return replace(tree, media=tuple(map(reader.medium, layout.media)), types=reader.types(tree.prompt))


def _encode_block(
    items: Sequence[Item], speaker: SpeakerProtocol, max_tokens: int, remarks: Counter[str]
) -> Iterator[tuple[Tree | None, list[Drop]]]:
    layouts = [
        layout if item.responses else TurnError("no_responses")
        for item, layout in zip(items, _layouts(items, speaker, remarks), strict=True)
    ]
    encodable = [layout for layout in layouts if isinstance(layout, Layout)]
    table = encode_jointly(encodable, speaker.codec)
    prompts = [_prompt_ids(layout, speaker, table) for layout in encodable]
    answers = [
        [EncodedAnswer(k, b) for k, b in enumerate(layout.branches) if not isinstance(b, TurnError)]
        for layout in encodable
    ]
    encode_segments(encodable, prompts, answers, speaker.codec, table)
    spelled = iter(zip(encodable, prompts, answers, strict=True))
    for item, layout in zip(items, layouts, strict=True):
        if isinstance(layout, TurnError):
            yield None, [Drop(item.where, item.id, layout.reason, layout.detail)]
            continue
        _, prompt, item_answers = next(spelled)
        if prompt is None:
            yield None, [Drop(item.where, item.id, "special_token_in_text", "in the prompt")]
        else:
            yield _tree(item, layout, prompt, item_answers, speaker, max_tokens)


def _layouts(items: Sequence[Item], speaker: SpeakerProtocol, remarks: Counter[str]) -> list[Layout | TurnError]:
    """The layout of every item, with all renderings requested in one batch; remarks are counted."""
    talks = [_conversation_or_text(item, speaker.codec) for item in items]
    calls = [call for talk in talks if isinstance(talk, Conversation) for call in talk.calls()]
    if calls:
        speaker.renderer.prepare(calls)
    layouts = [_layout(talk, speaker) for talk in talks]
    for layout in layouts:
        remarks.update(layout.remarks if isinstance(layout, Layout) else ())
    return layouts


def _layout(talk: Item | Conversation | TurnError, speaker: SpeakerProtocol) -> Layout | TurnError:
    """The layout of a text item or a conversation, or the reason why it has none."""
    if isinstance(talk, TurnError):
        return talk
    try:
        return text_layout(talk) if isinstance(talk, Item) else chat_layout(talk, speaker.renderer, speaker.reader)
    except TurnError as error:
        return error


def _conversation_or_text(item: Item, codec: Codec) -> Item | Conversation | TurnError:
    try:
        return conversation(item, codec.specials) if item.is_chat else item
    except TurnError as error:
        return error


def _prompt_ids(layout: Layout, speaker: SpeakerProtocol, table: dict[Chunk, list[int]]) -> list[int] | None:
    codec = speaker.codec
    if not layout.prompt:
        return speaker.empty_prompt()
    opening, further = layout.prompt[0], layout.prompt[1:]
    ids = codec.encode([opening.text], markers=opening.markers)[0] if further else table[opening]
    further_ids = encode_continuation(further, codec)
    if further_ids is None or not respects_markers(opening, ids, codec):
        return None
    head = [] if opening.markers else codec.prefix_ids
    return [*head, *ids, *further_ids] or speaker.empty_prompt()


def _tree(
    item: Item,
    layout: Layout,
    prompt: list[int],
    answers: Sequence[EncodedAnswer],
    speaker: SpeakerProtocol,
    max_tokens: int,
) -> tuple[Tree | None, list[Drop]]:
    """The tree of the responses that could be encoded, cut to ``max_tokens``."""
    losses = [
        _response_drop(item, k, b.reason, b.detail) for k, b in enumerate(layout.branches) if isinstance(b, TurnError)
    ]
    eos = speaker.response_end(chat=item.is_chat)
    branches: dict[int, Branch] = {}
    for answer in answers:
        if answer.parts is None:
            losses.append(_response_drop(item, answer.k, *failure_reason(answer, speaker.codec)))
            continue
        branches[answer.k] = _branch(answer, eos)
        if not answer.exact:
            detail = f"response {answer.k}: in the Unicode normal form of the tokenizer"
            losses.append(Drop(item.where, item.id, "normalised", detail, "response", "cut"))
    if not branches:
        reasons = sorted({loss.reason for loss in losses})
        reason = reasons[0] if len(reasons) == 1 else "no_response_left"
        return None, [Drop(item.where, item.id, reason, "; ".join(loss.detail for loss in losses))]
    indices = sorted(branches)
    cut, cuts = truncate_tree(item, prompt, {k: branches[k] for k in indices}, max_tokens, speaker.bos)
    if layout.media and len(cut.prompt) < len(prompt):
        detail = f"{len(prompt)} prompt tokens leave no room, and images and sounds are never cut"
        return None, [Drop(item.where, item.id, "media_too_long", detail)]
    pairs, lost_pairs = _pairs(item, dict(zip(indices, cut.branches, strict=True)), losses, cuts)
    all_labels, all_scores = labels(item), scores(item)
    annotations = {"labels": tuple(all_labels[k] for k in indices), "scores": tuple(all_scores[k] for k in indices)}
    tree = _with_media(replace(cut, preferences=pairs, **annotations), layout, speaker)
    return tree, [*losses, *cuts, *lost_pairs]


def _branch(answer: EncodedAnswer, eos: int) -> Branch:
    parts = answer.parts or []
    ids = [i for part in parts for i in part]
    scored = [s.scored for s, part in zip(answer.segments, parts, strict=True) for _ in part]
    if ids[-1] != eos:
        ids.append(eos)
        scored.append(True)
    return Branch(np.asarray(ids, dtype=np.int32), np.asarray(scored, dtype=bool))


def _pairs(
    item: Item, branches: dict[int, Branch], losses: Sequence[Drop], cuts: Sequence[Drop]
) -> tuple[tuple[Preference, ...], list[Drop]]:
    """The item's preferences between remaining, different branches, with their new indices."""
    index_of = {k: n for n, k in enumerate(branches)}
    identical = "identical_after_cut" if any(c.reason == "response_cut" for c in cuts) else "identical_pair"
    pairs, drops = [], []
    for pair in preferences(item):
        name = f"responses {pair.i} and {pair.j}"
        if pair.i not in index_of or pair.j not in index_of:
            drops.append(Drop(item.where, item.id, "response_dropped", name, "pair"))
        elif np.array_equal(branches[pair.i].ids, branches[pair.j].ids):
            drops.append(Drop(item.where, item.id, identical, name, "pair"))
        else:
            pairs.append(replace(pair, i=index_of[pair.i], j=index_of[pair.j]))
    return tuple(pairs), drops


def _response_drop(item: Item, k: int, reason: str, detail: str = "") -> Drop:
    text = f"response {k}" + (f": {detail}" if detail else "")
    return Drop(item.where, item.id, reason, text, "response")
