"""Encode the texts of a layout: jointly if the joints are token boundaries, else each text separately.

The ids of every scored text must decode to it in context; a response for which no encoding does is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from afzal.tokens.codec import Codec, is_proper_prefix, same_text
from afzal.tokens.layout import Chunk, Layout, Segment
from afzal.tokens.template import TurnError

_SEARCH_WIDTH = 4  # tokens


@dataclass(slots=True)
class EncodedAnswer:
    """A response that is being encoded; ``parts`` holds the ids of each segment, None until an encoding is accepted.

    Encoding may move white space from an unscored segment to the scored one after it, if one token contains both.
    """

    k: int
    segments: tuple[Segment, ...]
    parts: list[list[int]] | None = None
    exact: bool = True


def encode_jointly(layouts: Sequence[Layout], codec: Codec) -> dict[Chunk, list[int]]:
    """Ids of every prompt, and of every prompt followed by one or more of its response's segments, each encoded as one
    text."""
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
    """Prompt, prompt + first segment, ...; None if plain-text spellings of special tokens prevent encoding it as one
    text."""
    chunks = [*layout.prompt, *(c for s in segments for c in s.chunks)]
    if len(chunks) != 1 + len(segments) or len({c.markers for c in chunks}) > 1:
        return None
    text, texts = "", []
    for chunk in chunks:
        text += chunk.text
        texts.append(Chunk(text, chunk.markers))
    return texts


def encode_segments(
    layouts: Sequence[Layout],
    prompts: Sequence[list[int] | None],
    answers: Sequence[Sequence[EncodedAnswer]],
    codec: Codec,
    table: dict[Chunk, list[int]],
) -> None:
    """Fill in the parts: from the joint text if the joints are token boundaries, else encoded separately."""
    jobs = [
        (layout, prompt, answer)
        for layout, prompt, group in zip(layouts, prompts, answers, strict=True)
        if prompt is not None
        for answer in group
    ]
    for layout, _, answer in jobs:
        _joint_parts(layout, answer, table, codec)
    _clear_inexact([(p, a) for _, p, a in jobs], codec)
    separate = [(p, a) for _, p, a in jobs if a.parts is None]
    chunks = {c: None for _, a in separate for s in a.segments for c in s.chunks}
    spelled = _encode_separately(list(chunks), codec)
    for _, answer in separate:
        parts = [_concatenated([spelled[c] for c in s.chunks]) for s in answer.segments]
        answer.parts = None if any(p is None for p in parts) else [p for p in parts if p is not None]
    _clear_inexact(separate, codec)


def _joint_parts(layout: Layout, answer: EncodedAnswer, table: dict[Chunk, list[int]], codec: Codec) -> None:
    """Fill in the parts from the ids of prompt and response as one text, if they begin with the prompt's ids."""
    texts = _joint_texts(layout, answer.segments)
    if texts is None:
        return
    ids = [table[t] for t in texts]
    before, all_ids = ids[0], ids[-1]
    if not is_proper_prefix(all_ids, before):
        return
    if all(
        is_proper_prefix(longer, shorter) and all_ids[: len(shorter)] == shorter for shorter, longer in pairwise(ids)
    ):
        answer.parts = [longer[len(shorter) :] for shorter, longer in pairwise(ids)]
    else:
        _split(answer, before, all_ids[len(before) :], [len(i) - len(before) for i in ids[1:-1]], codec)


def _split(answer: EncodedAnswer, before: list[int], rest: list[int], guesses: Sequence[int], codec: Codec) -> None:
    """Fill in the parts by decoding: search the token boundary between two segments near its guess.

    A token with white space of an unscored segment and the first characters of a scored one goes to the latter.
    """
    segments, parts = list(answer.segments), []
    start = 0
    for k, guess in enumerate(guesses):
        low, high = max(start, guess - _SEARCH_WIDTH), min(len(rest), guess + _SEARCH_WIDTH)
        ends = range(low, high + 1)
        target = segments[k].text
        head = [*before, *rest[:start]]
        added = codec.added_texts([(head, rest[start:end]) for end in ends])
        texts = {end: codec.rendered(head, t) for end, t in zip(ends, added, strict=True) if t is not None}
        prefixes = {end: t for end, t in texts.items() if target.startswith(t)}
        if not prefixes:
            return
        end = max(prefixes, key=lambda n: (len(prefixes[n]), -n))
        adjusted = _move_space(segments[k], segments[k + 1], len(prefixes[end]))
        if adjusted is None:
            return
        segments[k], segments[k + 1] = adjusted
        parts.append(rest[start:end])
        start = end
    parts.append(rest[start:])
    filled = [(s, p) for s, p in zip(segments, parts, strict=True) if s.text]
    answer.segments, answer.parts = tuple(s for s, _ in filled), [p for _, p in filled]


def _move_space(unscored: Segment, scored: Segment, end: int) -> tuple[Segment, Segment] | None:
    """The two segments, with the first one's text from ``end`` on moved to the second; None if that is not only white
    space."""
    text, space = unscored.text[:end], unscored.text[end:]
    if not space:
        return unscored, scored
    if space.strip() or unscored.scored or not scored.scored:
        return None
    (first,) = scored.chunks
    return Segment((Chunk(text, first.markers),), False), Segment((Chunk(space + first.text, first.markers),), True)


def _clear_inexact(work: Sequence[tuple[list[int], EncodedAnswer]], codec: Codec) -> None:
    """Clear the parts of every answer whose scored ids do not decode to its text in context."""
    checks, owners = [], []
    for prompt, answer in work:
        before = list(prompt)
        for segment, ids in zip(answer.segments, answer.parts or (), strict=False):
            if len(segment.chunks) == 1 and not respects_markers(segment.chunks[0], ids, codec):
                answer.parts = None
            if segment.scored:
                checks.append((before, ids))
                owners.append((answer, segment))
            before = before + ids
    for (answer, segment), (before, _), decoded in zip(owners, checks, codec.added_texts(checks), strict=True):
        if decoded is not None and len(segment.chunks) == 1 and segment.chunks[0].markers:
            decoded = codec.rendered(before, decoded)
        if decoded is None or not same_text(decoded, segment.text):
            answer.parts = None
        elif decoded != segment.text:
            answer.exact = False


def _encode_separately(chunks: Sequence[Chunk], codec: Codec) -> dict[Chunk, list[int] | None]:
    spellings: dict[Chunk, list[int] | None] = {}
    for markers in (False, True):
        group = [c for c in chunks if c.markers == markers]
        spellings.update(zip(group, codec.continuations([c.text for c in group], markers=markers), strict=True))
    return {c: ids if ids is not None and respects_markers(c, ids, codec) else None for c, ids in spellings.items()}


def encode_continuation(chunks: Sequence[Chunk], codec: Codec) -> list[int] | None:
    """Ids of the chunks as a continuation; None if one cannot be encoded."""
    spelled = _encode_separately(chunks, codec) if chunks else {}
    return _concatenated([spelled[c] for c in chunks])


def _concatenated(parts: Sequence[list[int] | None]) -> list[int] | None:
    return None if any(p is None for p in parts) else [i for p in parts for i in p or ()]


def respects_markers(chunk: Chunk, ids: Sequence[int], codec: Codec) -> bool:
    """Whether the ids respect the rule that a person's text contains no special token."""
    return chunk.markers or codec.special_ids.isdisjoint(ids)


def failure_reason(answer: EncodedAnswer, codec: Codec) -> tuple[str, str]:
    """The reason why an answer could not be encoded, and the text at fault."""
    chunks = [c for s in answer.segments for c in s.chunks]
    for chunk in chunks:
        if not respects_markers(chunk, codec.encode([chunk.text], markers=chunk.markers)[0], codec):
            return "special_token_in_text", ""
    for chunk in chunks:
        decoded = codec.decode(codec.encode([chunk.text], markers=chunk.markers))[0]
        if not same_text(decoded, chunk.text):
            return "not_reversible", _first_difference(chunk.text, decoded)
    return "boundary", ""


def _first_difference(text: str, decoded: str) -> str:
    shorter = min(len(text), len(decoded))
    position = next((i for i in range(shorter) if text[i] != decoded[i]), shorter)
    return f"the tokenizer writes {decoded[position : position + 20]!r} for {text[position : position + 20]!r}"
