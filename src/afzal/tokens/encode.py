"""Items to token trees, with every dropped or shortened row on record.

Guarantees, for every tree: all branches follow the very same prompt ids, which are those generation is fed; the scored
ids decode to the assistant's text and its end marker, and nothing else; exactly one EOS, at the end, unless the
response was cut.
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
from afzal.tokens.answers import SPELLED, remark_texts
from afzal.tokens.codec import Codec
from afzal.tokens.cut import cut_prompt, cut_tree
from afzal.tokens.layout import Chunk, Conversation, Layout, chat_layout, conversation, mentions, text_layout
from afzal.tokens.media import MediaReader
from afzal.tokens.spell import Answer, continued, honest, joint_table, spell, why_not
from afzal.tokens.template import Renderer, TurnError
from afzal.tokens.tree import Branch, Tree

_BLOCK = 512


class Spoken(Protocol):
    """What is asked of a :class:`afzal.tokens.speaker.Speaker`, which stands above this file."""

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
    """Trees, and what it took to get them.

    ``len(trees)`` plus the drops whose ``unit`` is ``item`` is the number of items that went in; ``kept`` holds, for
    each tree, the index of its item; ``remarks`` counts items by what became of their texts
    (:data:`afzal.tokens.answers.REMARKS`).
    """

    trees: list[Tree]
    drops: list[Drop]
    cuts: list[Drop]
    remarks: Counter[str] = field(default_factory=Counter)
    kept: tuple[int, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The remarks as sentences."""
        return remark_texts(self.remarks)

    def counts(self, action: Literal["dropped", "cut"]) -> dict[str, int]:
        """Losses per reason, most frequent first."""
        losses = self.drops if action == "dropped" else self.cuts
        return dict(Counter(loss.reason for loss in losses).most_common())


def encode_items(items: Sequence[Item], speaker: Spoken, max_tokens: int) -> Encoded:
    """One tree per item.

    Args:
        max_tokens: limit for the prompt and any one of its branches together, see :func:`afzal.tokens.cut.cut_tree`.

    Raises:
        AfzalError: no room (``max_tokens`` below 2), or nothing that could end a response.
    """
    if max_tokens < 2:
        raise AfzalError(f"max_tokens is {max_tokens}: no room for a prompt and a response", remedy="max_tokens=512")
    remarks: Counter[str] = Counter()
    trees: list[Tree] = []
    drops: list[Drop] = []
    cuts: list[Drop] = []
    kept: list[int] = []
    for start in range(0, len(items), _BLOCK):
        block = _encode_block(items[start : start + _BLOCK], speaker, max_tokens, remarks)
        for n, (found, losses) in enumerate(block, start):
            trees += [found] if found else []
            kept += [n] if found else []
            drops += [loss for loss in losses if loss.action == "dropped"]
            cuts += [loss for loss in losses if loss.action == "cut"]
    if speaker.codec.specials is not None and (n := sum(mentions(item, speaker.codec.specials) for item in items)):
        remarks[SPELLED] = n
    return Encoded(trees, drops, cuts, remarks, tuple(kept))


def prompt_trees(
    prompts: Sequence[Turns | Item], speaker: Spoken, max_tokens: int, remarks: Counter[str] | None = None
) -> list[Tree]:
    """Trees without branches to generate from: for equal prompts, with the ids and media of the items' trees.

    Args:
        prompts: an item stands for its prompt with what its row says to the template (``tools`` ...).
        max_tokens: longer prompts lose their left end, but not the BOS.
        remarks: what the template does to the conversations is counted here.

    Raises:
        AfzalError: a prompt cannot be rendered.
    """
    remarks = Counter() if remarks is None else remarks
    layouts: list[Layout] = []
    for start in range(0, len(prompts), _BLOCK):
        block = [p if isinstance(p, Item) else Item("", p, ()) for p in prompts[start : start + _BLOCK]]
        for n, layout in enumerate(_layouts([replace(item, responses=()) for item in block], speaker, remarks), start):
            if isinstance(layout, TurnError):
                what, remedy = f"this prompt has no tokens: {layout}", "leave it out, or change its text"
                raise AfzalError(what, where=block[n - start].where or f"prompt {n}", remedy=remedy) from layout
            layouts.append(layout)
    table = joint_table(layouts, speaker.codec)
    ids = [_prompt_ids(layout, speaker, table) for layout in layouts]
    for n, found in enumerate(ids):
        if found is None:
            what, remedy = "a special token spelled out in this prompt cannot be kept apart", "leave the prompt out"
            raise AfzalError(what, where=f"prompt {n}", remedy=remedy)
    names = [p.id if isinstance(p, Item) else str(n) for n, p in enumerate(prompts)]
    cut = [np.asarray(cut_prompt(found or [], max_tokens, speaker.bos), dtype=np.int32) for found in ids]
    for layout, found, short in zip(layouts, ids, cut, strict=True):
        if layout.media and len(short) < len(found or []):
            what, remedy = "a prompt with images or sounds is longer than the limit", "a larger max_tokens"
            raise AfzalError(what, why=f"{len(found or [])} tokens, {max_tokens} allowed", remedy=remedy)
    return [
        _with_media(Tree(name, short, ()), layout, speaker)
        for name, short, layout in zip(names, cut, layouts, strict=True)
    ]


def _with_media(tree: Tree, layout: Layout, speaker: Spoken) -> Tree:
    """The tree with the images and sounds of its prompt."""
    reader = speaker.reader
    if reader is None:
        return tree
    return replace(tree, media=tuple(map(reader.medium, layout.media)), types=reader.types(tree.prompt))


def _encode_block(
    items: Sequence[Item], speaker: Spoken, max_tokens: int, remarks: Counter[str]
) -> Iterator[tuple[Tree | None, list[Drop]]]:
    layouts = [
        layout if item.responses else TurnError("no_responses")
        for item, layout in zip(items, _layouts(items, speaker, remarks), strict=True)
    ]
    good = [layout for layout in layouts if isinstance(layout, Layout)]
    table = joint_table(good, speaker.codec)
    prompts = [_prompt_ids(layout, speaker, table) for layout in good]
    answers = [[Answer(k, b) for k, b in enumerate(layout.branches) if not isinstance(b, TurnError)] for layout in good]
    spell(good, prompts, answers, speaker.codec, table)
    spelled = iter(zip(good, prompts, answers, strict=True))
    for item, layout in zip(items, layouts, strict=True):
        if isinstance(layout, TurnError):
            yield None, [Drop(item.where, item.id, layout.reason, layout.detail)]
            continue
        _, prompt, found = next(spelled)
        if prompt is None:
            yield None, [Drop(item.where, item.id, "special_token_in_text", "in the prompt")]
        else:
            yield _tree(item, layout, prompt, found, speaker, max_tokens)


def _layouts(items: Sequence[Item], speaker: Spoken, remarks: Counter[str]) -> list[Layout | TurnError]:
    """The layout of every item, with all its renderings asked for at once; what the templates did is counted."""
    talks = [_talk(item, speaker.codec) for item in items]
    calls = [call for talk in talks if isinstance(talk, Conversation) for call in talk.calls()]
    if calls:
        speaker.renderer.prepare(calls)
    layouts = [_layout(talk, speaker) for talk in talks]
    for layout in layouts:
        remarks.update(layout.remarks if isinstance(layout, Layout) else ())
    return layouts


def _layout(talk: Item | Conversation | TurnError, speaker: Spoken) -> Layout | TurnError:
    """The layout of an item of texts or of a conversation, or the reason why it has none."""
    if isinstance(talk, TurnError):
        return talk
    try:
        return text_layout(talk) if isinstance(talk, Item) else chat_layout(talk, speaker.renderer, speaker.reader)
    except TurnError as error:
        return error


def _talk(item: Item, codec: Codec) -> Item | Conversation | TurnError:
    try:
        return conversation(item, codec.specials) if item.is_chat else item
    except TurnError as error:
        return error


def _prompt_ids(layout: Layout, speaker: Spoken, table: dict[Chunk, list[int]]) -> list[int] | None:
    codec = speaker.codec
    if not layout.prompt:
        return speaker.empty_prompt()
    opening, others = layout.prompt[0], layout.prompt[1:]
    ids = codec.encode([opening.text], markers=opening.markers)[0] if others else table[opening]
    rest = continued(others, codec)
    if rest is None or not honest(opening, ids, codec):
        return None
    head = [] if opening.markers else codec.head
    return [*head, *ids, *rest] or speaker.empty_prompt()


def _tree(
    item: Item, layout: Layout, prompt: list[int], answers: Sequence[Answer], speaker: Spoken, max_tokens: int
) -> tuple[Tree | None, list[Drop]]:
    """The tree of the responses that could be spelled, cut to size."""
    losses = [_lost(item, k, b.reason, b.detail) for k, b in enumerate(layout.branches) if isinstance(b, TurnError)]
    eos = speaker.response_end(chat=item.is_chat)
    branches: dict[int, Branch] = {}
    for answer in answers:
        if answer.parts is None:
            losses.append(_lost(item, answer.k, *why_not(answer, speaker.codec)))
            continue
        branches[answer.k] = _branch(answer, eos)
        if not answer.exact:
            detail = f"response {answer.k}: in the normal form the tokenizer writes"
            losses.append(Drop(item.where, item.id, "normalised", detail, "response", "cut"))
    if not branches:
        reasons = sorted({loss.reason for loss in losses})
        reason = reasons[0] if len(reasons) == 1 else "no_response_left"
        return None, [Drop(item.where, item.id, reason, "; ".join(loss.detail for loss in losses))]
    kept = sorted(branches)
    made, cuts = cut_tree(item, prompt, {k: branches[k] for k in kept}, max_tokens, speaker.bos)
    if layout.media and len(made.prompt) < len(prompt):
        detail = f"{len(prompt)} prompt tokens leave no room, and images and sounds are never cut"
        return None, [Drop(item.where, item.id, "media_too_long", detail)]
    pairs, lost_pairs = _pairs(item, dict(zip(kept, made.branches, strict=True)), losses, cuts)
    wanted, ranked = labels(item), scores(item)
    told = {"labels": tuple(wanted[k] for k in kept), "scores": tuple(ranked[k] for k in kept)}
    tree = _with_media(replace(made, preferences=pairs, **told), layout, speaker)
    return tree, [*losses, *cuts, *lost_pairs]


def _branch(answer: Answer, eos: int) -> Branch:
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
    """The item's preferences between surviving, different branches, by their new indices."""
    new = {k: n for n, k in enumerate(branches)}
    identical = "identical_after_cut" if any(c.reason == "response_cut" for c in cuts) else "identical_pair"
    kept, lost = [], []
    for pair in preferences(item):
        name = f"responses {pair.i} and {pair.j}"
        if pair.i not in new or pair.j not in new:
            lost.append(Drop(item.where, item.id, "response_dropped", name, "pair"))
        elif np.array_equal(branches[pair.i].ids, branches[pair.j].ids):
            lost.append(Drop(item.where, item.id, identical, name, "pair"))
        else:
            kept.append(replace(pair, i=new[pair.i], j=new[pair.j]))
    return tuple(kept), lost


def _lost(item: Item, k: int, reason: str, detail: str = "") -> Drop:
    text = f"response {k}" + (f": {detail}" if detail else "")
    return Drop(item.where, item.id, reason, text, "response")
