"""Items to token trees, with every dropped or shortened row on record.

Guarantees, for every tree: all branches follow the very same prompt ids, which are those generation is fed; the scored
ids decode to the assistant's text and its end marker, and nothing else; exactly one EOS, at the end, unless the
response was cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from afzal.errors import AfzalError
from afzal.records import Item, Preference, Turns, labels, preferences, scores
from afzal.tokens.codec import Codec, same_text, starts
from afzal.tokens.cut import cut_prompt, cut_tree
from afzal.tokens.layout import Chunk, Layout, Segment, chat_layout, mentions, prompt_chunks, text_layout
from afzal.tokens.loss import Loss
from afzal.tokens.template import Renderer, TurnError, renderer, resolve_template
from afzal.tokens.tree import Branch, Tree

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Encoded:
    """Trees, and what it took to get them.

    ``len(trees)`` plus the drops whose ``unit`` is ``item`` is the number of items that went in; ``kept`` holds, for
    each tree, the index of its item.
    """

    trees: list[Tree]
    drops: list[Loss]
    cuts: list[Loss]
    notes: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()

    def counts(self, action: Literal["dropped", "cut"]) -> dict[str, int]:
        """Losses per reason, most frequent first."""
        losses = self.drops if action == "dropped" else self.cuts
        return dict(Counter(loss.reason for loss in losses).most_common())


def encode(
    items: Sequence[Item],
    tokenizer: Any,
    *,
    max_tokens: int,
    chat_template: str | None = None,
    eos: int | None = None,
) -> Encoded:
    """One tree per item.

    Args:
        tokenizer: a `transformers` tokenizer, fast or slow.
        max_tokens: limit for the prompt and any one of its branches together, see :func:`afzal.tokens.cut.cut_tree`.
        chat_template: as for :func:`afzal.tokens.resolve_template`; None takes the tokenizer's own, or else ``plain``.
        eos: id that ends a response. None takes the marker with which the template ends a turn, or else the
            tokenizer's EOS.

    Raises:
        AfzalError: no room (``max_tokens`` below 2), or nothing that could end a response.
    """
    if max_tokens < 2:
        raise AfzalError(f"max_tokens is {max_tokens}: no room for a prompt and a response", remedy="max_tokens=512")
    speaker = _Speaker(tokenizer, chat_template, eos)
    trees: list[Tree] = []
    drops: list[Loss] = []
    cuts: list[Loss] = []
    kept: list[int] = []
    for start in range(0, len(items), _BLOCK):
        block = _encode_block(items[start : start + _BLOCK], speaker, max_tokens)
        for n, (found, losses) in enumerate(block, start):
            trees += [found] if found else []
            kept += [n] if found else []
            drops += [loss for loss in losses if loss.action == "dropped"]
            cuts += [loss for loss in losses if loss.action == "cut"]
    return Encoded(trees, drops, cuts, _notes(items, speaker.codec), tuple(kept))


def encode_prompts(
    prompts: Sequence[Turns], tokenizer: Any, *, max_tokens: int, chat_template: str | None = None
) -> list[np.ndarray]:
    """Ids (int32 ``[P]``) to generate from: for equal prompts, those of the trees' prompts.

    Args:
        max_tokens: longer prompts lose their left end, but not the BOS.

    Raises:
        AfzalError: a prompt cannot be rendered.
    """
    speaker = _Speaker(tokenizer, chat_template, None)
    layouts = []
    for n, turns in enumerate(prompts):
        try:
            layouts.append(Layout(prompt_chunks(turns, speaker.renderer(turns), speaker.codec.specials), ()))
        except TurnError as error:
            raise AfzalError(
                f"this prompt has no tokens: {error}", where=f"prompt {n}", remedy="leave it out, or mend its text"
            ) from error
    table = _joint_table(layouts, speaker.codec)
    ids = [_prompt_ids(layout, speaker, table) for layout in layouts]
    for n, found in enumerate(ids):
        if found is None:
            what, remedy = "a special token spelled out in this prompt cannot be kept apart", "leave the prompt out"
            raise AfzalError(what, where=f"prompt {n}", remedy=remedy)
    return [np.asarray(cut_prompt(found or [], max_tokens, speaker.bos), dtype=np.int32) for found in ids]


def continuation(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that ``ids`` add after ``before``; unlike ``decode(ids)`` it keeps a leading space."""
    return continuations(tokenizer, [(before, ids)])[0]


def continuations(tokenizer: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str]:
    """:func:`continuation` of each ``(before, ids)``, with the tokenizer asked about all of them at once."""
    codec = Codec(tokenizer)
    added = codec.after(pairs)
    plain = iter(codec.decode([ids for (_, ids), text in zip(pairs, added, strict=True) if text is None]))
    return [next(plain) if text is None else text for text in added]


class _Speaker:
    """Tokenizer, template and end of a response; the template is only looked up when a conversation comes."""

    def __init__(self, tokenizer: Any, chat_template: str | None, eos: int | None) -> None:
        self.tokenizer, self.codec = tokenizer, Codec(tokenizer)
        self.bos: int | None = tokenizer.bos_token_id
        self._chat_template, self._eos = chat_template, eos
        self._renderer: Renderer | None = None

    def renderer(self, turns: Turns = ()) -> Renderer:
        if self._renderer is None:
            if isinstance(turns, str):
                return Renderer(self.tokenizer, "", None, 0)
            self._renderer = renderer(self.tokenizer, resolve_template(self.tokenizer, self._chat_template)[0])
        return self._renderer

    def eos(self, chat: bool) -> int:
        if self._eos is not None:
            return self._eos
        marker = self.renderer().end_of_turn if chat else None
        found = self.tokenizer.eos_token_id if marker is None else self.tokenizer.convert_tokens_to_ids(marker)
        if found is None:
            raise AfzalError(
                "nothing ends a response: the tokenizer has no EOS token", remedy="name the id that does, eos=..."
            )
        return found

    def layout(self, item: Item) -> Layout:
        if not item.responses:
            raise TurnError("no_responses")
        if not item.is_chat:
            return text_layout(item)
        return chat_layout(item, self.renderer(item.prompt), self.codec.specials)

    def empty_prompt(self) -> list[int]:
        """What stands for an empty prompt: whatever begins a document."""
        return list(self.codec.head) or [self.bos if self.bos is not None else self.eos(chat=False)]


@dataclass(slots=True)
class _Answer:
    """A response on its way to a branch; ``parts`` holds the ids of each segment, None until a spelling holds."""

    k: int
    segments: tuple[Segment, ...]
    parts: list[list[int]] | None = None
    exact: bool = True


def _encode_block(
    items: Sequence[Item], speaker: _Speaker, max_tokens: int
) -> Iterator[tuple[Tree | None, list[Loss]]]:
    layouts = [_layout(item, speaker) for item in items]
    good = [layout for layout in layouts if isinstance(layout, Layout)]
    table = _joint_table(good, speaker.codec)
    prompts = [_prompt_ids(layout, speaker, table) for layout in good]
    answers = [
        [_Answer(k, b) for k, b in enumerate(layout.branches) if not isinstance(b, TurnError)] for layout in good
    ]
    _spell(good, prompts, answers, speaker.codec, table)
    spelled = iter(zip(good, prompts, answers, strict=True))
    for item, layout in zip(items, layouts, strict=True):
        if isinstance(layout, TurnError):
            yield None, [Loss(item.id, item.where, layout.reason, layout.detail)]
            continue
        _, prompt, found = next(spelled)
        if prompt is None:
            yield None, [Loss(item.id, item.where, "special_token_in_text", "in the prompt")]
        else:
            yield _tree(item, layout, prompt, found, speaker, max_tokens)


def _layout(item: Item, speaker: _Speaker) -> Layout | TurnError:
    try:
        return speaker.layout(item)
    except TurnError as error:
        return error


def _joint_table(layouts: Sequence[Layout], codec: Codec) -> dict[Chunk, list[int]]:
    """Ids of every prompt, and of every prompt with its response's segments one after another, as whole texts."""
    texts: dict[Chunk, list[int]] = {}
    for layout in layouts:
        for branch in ((), *layout.branches):
            if not isinstance(branch, TurnError):
                texts.update({text: [] for text in _joint_texts(layout, branch) or ()})
    for markers in (False, True):
        chunks = [c for c in texts if c.markers == markers]
        texts.update(zip(chunks, codec.encode([c.text for c in chunks], markers=markers), strict=True))
    return texts


def _joint_texts(layout: Layout, segments: Sequence[Segment]) -> list[Chunk] | None:
    """Prompt, prompt + first segment, ...; None where special tokens that are none forbid reading it as one text."""
    chunks = [*layout.prompt, *(c for s in segments for c in s.chunks)]
    if len(chunks) != 1 + len(segments) or len({c.markers for c in chunks}) > 1:
        return None
    text, texts = "", []
    for chunk in chunks:
        text += chunk.text
        texts.append(Chunk(text, chunk.markers))
    return texts


def _prompt_ids(layout: Layout, speaker: _Speaker, table: dict[Chunk, list[int]]) -> list[int] | None:
    codec = speaker.codec
    if not layout.prompt:
        return speaker.empty_prompt()
    opening, others = layout.prompt[0], layout.prompt[1:]
    ids = codec.encode([opening.text], markers=opening.markers)[0] if others else table[opening]
    rest = _continued(others, codec)
    if rest is None or not _honest(opening, ids, codec):
        return None
    head = [] if opening.markers else codec.head
    return [*head, *ids, *rest] or speaker.empty_prompt()


def _spell(
    layouts: Sequence[Layout],
    prompts: Sequence[list[int] | None],
    answers: Sequence[Sequence[_Answer]],
    codec: Codec,
    table: dict[Chunk, list[int]],
) -> None:
    """Fill in the parts: ids of the joint text where the joints are token boundaries, else spelled on their own."""
    work = [
        (layout, prompt, answer)
        for layout, prompt, found in zip(layouts, prompts, answers, strict=True)
        if prompt is not None
        for answer in found
    ]
    for layout, _, answer in work:
        answer.parts = _joint_parts(layout, answer.segments, table)
    _keep_exact([(p, a) for _, p, a in work], codec)
    alone = [(p, a) for _, p, a in work if a.parts is None]
    chunks = {c: None for _, a in alone for s in a.segments for c in s.chunks}
    spelled = _spellings(list(chunks), codec)
    for _, answer in alone:
        parts = [_joined([spelled[c] for c in s.chunks]) for s in answer.segments]
        answer.parts = None if any(p is None for p in parts) else [p for p in parts if p is not None]
    _keep_exact(alone, codec)


def _joint_parts(layout: Layout, segments: Sequence[Segment], table: dict[Chunk, list[int]]) -> list[list[int]] | None:
    texts = _joint_texts(layout, segments)
    if texts is None:
        return None
    ids = [table[t] for t in texts]
    if not all(starts(longer, shorter) for shorter, longer in pairwise(ids)):
        return None
    return [longer[len(shorter) :] for shorter, longer in pairwise(ids)]


def _keep_exact(work: Sequence[tuple[list[int], _Answer]], codec: Codec) -> None:
    """Take back the parts of every answer whose scored ids do not decode to its text where they stand."""
    checks, owners = [], []
    for prompt, answer in work:
        before = list(prompt)
        for segment, ids in zip(answer.segments, answer.parts or (), strict=False):
            if len(segment.chunks) == 1 and not _honest(segment.chunks[0], ids, codec):
                answer.parts = None
            if segment.scored:
                checks.append((before, ids))
                owners.append((answer, segment.text))
            before = before + ids
    for (answer, text), decoded in zip(owners, codec.after(checks), strict=True):
        if decoded is None or not same_text(decoded, text):
            answer.parts = None
        elif decoded != text:
            answer.exact = False


def _spellings(chunks: Sequence[Chunk], codec: Codec) -> dict[Chunk, list[int] | None]:
    found: dict[Chunk, list[int] | None] = {}
    for markers in (False, True):
        same = [c for c in chunks if c.markers == markers]
        found.update(zip(same, codec.continuations([c.text for c in same], markers=markers), strict=True))
    return {c: ids if ids is not None and _honest(c, ids, codec) else None for c, ids in found.items()}


def _continued(chunks: Sequence[Chunk], codec: Codec) -> list[int] | None:
    spelled = _spellings(chunks, codec) if chunks else {}
    return _joined([spelled[c] for c in chunks])


def _joined(parts: Sequence[list[int] | None]) -> list[int] | None:
    return None if any(p is None for p in parts) else [i for p in parts for i in p or ()]


def _honest(chunk: Chunk, ids: Sequence[int], codec: Codec) -> bool:
    """A person's text holds no special token."""
    return chunk.markers or codec.special_ids.isdisjoint(ids)


def _tree(
    item: Item, layout: Layout, prompt: list[int], answers: Sequence[_Answer], speaker: _Speaker, max_tokens: int
) -> tuple[Tree | None, list[Loss]]:
    """The tree of the responses that could be spelled, cut to size."""
    losses = [_lost(item, k, b.reason, b.detail) for k, b in enumerate(layout.branches) if isinstance(b, TurnError)]
    eos = speaker.eos(item.is_chat)
    branches: dict[int, Branch] = {}
    for answer in answers:
        if answer.parts is None:
            losses.append(_lost(item, answer.k, _why(answer, speaker.codec)))
            continue
        branches[answer.k] = _branch(answer, eos)
        if not answer.exact:
            detail = f"response {answer.k}: in the normal form the tokenizer writes"
            losses.append(Loss(item.id, item.where, "normalised", detail, "cut", "response"))
    if not branches:
        reasons = sorted({loss.reason for loss in losses})
        reason = reasons[0] if len(reasons) == 1 else "no_response_left"
        return None, [Loss(item.id, item.where, reason, "; ".join(loss.detail for loss in losses))]
    kept = sorted(branches)
    made, cuts = cut_tree(item, prompt, {k: branches[k] for k in kept}, max_tokens, speaker.bos)
    pairs, lost_pairs = _pairs(item, dict(zip(kept, made.branches, strict=True)), losses, cuts)
    wanted, ranked = labels(item), scores(item)
    tree = Tree(
        item.id, made.prompt, made.branches, pairs, tuple(wanted[k] for k in kept), tuple(ranked[k] for k in kept)
    )
    return tree, [*losses, *cuts, *lost_pairs]


def _branch(answer: _Answer, eos: int) -> Branch:
    parts = answer.parts or []
    ids = [i for part in parts for i in part]
    scored = [s.scored for s, part in zip(answer.segments, parts, strict=True) for _ in part]
    if ids[-1] != eos:
        ids.append(eos)
        scored.append(True)
    return Branch(np.asarray(ids, dtype=np.int32), np.asarray(scored, dtype=bool))


def _pairs(
    item: Item, branches: dict[int, Branch], losses: Sequence[Loss], cuts: Sequence[Loss]
) -> tuple[tuple[Preference, ...], list[Loss]]:
    """The item's preferences between surviving, different branches, by their new indices."""
    new = {k: n for n, k in enumerate(branches)}
    identical = "identical_after_cut" if any(c.reason == "response_cut" for c in cuts) else "identical_pair"
    kept, lost = [], []
    for pair in preferences(item):
        name = f"responses {pair.i} and {pair.j}"
        if pair.i not in new or pair.j not in new:
            lost.append(Loss(item.id, item.where, "response_dropped", name, "dropped", "pair"))
        elif np.array_equal(branches[pair.i].ids, branches[pair.j].ids):
            lost.append(Loss(item.id, item.where, identical, name, "dropped", "pair"))
        else:
            kept.append(replace(pair, i=new[pair.i], j=new[pair.j]))
    return tuple(kept), lost


def _why(answer: _Answer, codec: Codec) -> str:
    chunks = [c for s in answer.segments for c in s.chunks]
    if any(not _honest(c, codec.encode([c.text], markers=c.markers)[0], codec) for c in chunks):
        return "special_token_in_text"
    return "boundary" if all(codec.reversible(c.text, markers=c.markers) for c in chunks) else "not_reversible"


def _lost(item: Item, k: int, reason: str, detail: str = "") -> Loss:
    text = f"response {k}" + (f": {detail}" if detail else "")
    return Loss(item.id, item.where, reason, text, "dropped", "response")


def _notes(items: Sequence[Item], codec: Codec) -> tuple[str, ...]:
    if codec.specials is None:
        return ()
    found = sum(mentions(item, codec.specials) for item in items)
    if not found:
        return ()
    return (f"items whose text spells a special token, read as plain characters: {found}",)
