"""Display tokens: the prompt, scored and unscored tokens, and where a response ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from afzal.drops import Drop
from afzal.folders.load import load_processor, load_tokenizer
from afzal.records import Item
from afzal.tokens.codec import Codec
from afzal.tokens.encode import Encoded
from afzal.tokens.media import reader_of
from afzal.tokens.speaker import Speaker, any_chat
from afzal.tokens.tree import Branch, Tree

# role: style, and signs around a token with the same meaning as its colour
_ROLES = {
    "prompt": ("dim", "", "|"),
    "scored": ("green", "[", "]"),
    "unscored": ("yellow", "(", ")"),
    "EOS": ("bold red reverse", "<<", ">>"),
}
_MAX_REPEATS = 8
_VISIBLE = str.maketrans({"\n": "↵", "\t": "→", "\r": "␍"})


@dataclass(frozen=True, slots=True)
class TokenDisplay:
    """``markup`` for a terminal (rich), and the number of items that became trees."""

    markup: str
    n_trees: int


def display_tokens(
    items: Sequence[Item],
    model: str,
    n: int,
    max_tokens: int,
    *,
    chat_template: str | None = None,
    eos: int | None = None,
    ids: bool = False,
) -> TokenDisplay:
    """The tokens of the first ``n`` items, and how many of all items were dropped or cut, and why.

    Only the tokenizer or processor of ``model`` is loaded. Print with ``Console.print(..., highlight=False)``: the
    colours are already set. Signs around each token have the same meaning as its colour.

    Args:
        model: a folder or a hub id.
        ids: show each token's id next to it.

    Raises:
        AfzalError: there is no tokenizer.
    """
    processor = load_processor(model)
    tokenizer = load_tokenizer(model) if processor is None else processor.tokenizer
    speaker = Speaker(tokenizer, chat_template, eos, reader=reader_of(processor))
    encoded = speaker.encode(items, max_tokens=max_tokens)
    blocks = [_legend()]
    if any_chat(items):
        blocks.append(Text(speaker.notice or "chat template: the tokenizer's own"))
    blocks += [_tree(tree, speaker.codec, ids) for tree in encoded.trees[:n]]
    blocks.append(_counts(encoded, len(items)))
    return TokenDisplay("\n\n".join(block.markup for block in blocks), len(encoded.trees))


def _legend() -> Text:
    samples = {"prompt": "prompt", "scored": "scored", "unscored": "not scored", "EOS": "EOS"}
    return Text("  ").join([Text("tokens:"), *(_token(text, role) for role, text in samples.items())])


def _tree(tree: Tree, codec: Codec, ids: bool) -> Text:
    lines = [Text.assemble((f"item {tree.item_id}", "bold"), f"  prompt: {len(tree.prompt)} tokens")]
    prompt = [int(i) for i in tree.prompt]
    lines.append(_run("prompt", zip(_token_texts(codec, [], prompt), prompt, strict=True), ids))
    for k, branch in enumerate(tree.branches):
        lines.append(
            Text(f"response {k}: {_verdict(tree, k)}{len(branch.ids)} tokens, {int(branch.scored.sum())} scored")
        )
        lines += _branch(prompt, branch, codec, ids)
    return Text("\n").join(lines)


def _branch(prompt: list[int], branch: Branch, codec: Codec, ids: bool) -> Iterable[Text]:
    tokens = [int(i) for i in branch.ids]
    roles = ["scored" if scored else "unscored" for scored in branch.scored]
    if tokens[-1] in codec.special_ids | {codec.tokenizer.eos_token_id} and branch.scored[-1]:
        roles[-1] = "EOS"
    rows = zip(roles, _token_texts(codec, prompt, tokens), tokens, strict=True)
    for role, run in groupby(rows, key=lambda row: row[0]):
        yield _run(role, ((text, i) for _, text, i in run), ids)


def _run(role: str, tokens: Iterable[tuple[str, int]], ids: bool) -> Text:
    line = Text(f"  {role + ':':<10}")
    for (text, i), group in groupby(tokens):
        label, n = f"{text}{{{i}}}" if ids else text, len(list(group))
        is_long = role == "prompt" and n > _MAX_REPEATS  # an image or a sound has hundreds of equal tokens
        repeated = [f"{label} x {n}"] if is_long else [label] * n
        for each in repeated:
            line.append_text(_token(each, role))
    return line


def _token(text: str, role: str) -> Text:
    style, left, right = _ROLES[role]
    return Text(f"{left}{text}{right}", style=style)


def _token_texts(codec: Codec, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    """Each token's text; for part of a character, the token's name."""
    context = [*before, *ids]
    start = len(before)
    pairs = [(context[max(0, start + k - 1) : start + k], [i]) for k, i in enumerate(ids)]
    texts = codec.added_texts(pairs)
    return [_visible(text) or codec.tokenizer.convert_ids_to_tokens(i) for text, i in zip(texts, ids, strict=True)]


def _visible(text: str | None) -> str:
    return "" if not text or "\ufffd" in text else text.translate(_VISIBLE)


def _verdict(tree: Tree, k: int) -> str:
    """The votes' verdict on a response, in one or two words."""
    if any(p.i == k and p.p > 0.5 for p in tree.preferences):
        return "preferred, "
    if any(p.j == k and p.p > 0.5 for p in tree.preferences):
        return "not preferred, "
    label = tree.labels[k] if tree.labels else None
    return {True: "desirable, ", False: "undesirable, "}.get(label, "") if label is not None else ""


def _example(loss: Drop) -> str:
    """Place and detail of the first drop or cut for a reason."""
    words = ": ".join(filter(None, (loss.where, loss.detail)))
    return f" ({words})" if words else ""


def _counts(encoded: Encoded, n_items: int) -> Text:
    lines = [f"{len(encoded.trees)} of {n_items} items became tokens"]
    for losses in (encoded.drops, encoded.cuts):
        for reason, count in Counter(loss.reason for loss in losses).most_common():
            first = next(loss for loss in losses if loss.reason == reason)
            lines.append(f"{first.action}: {count} {reason}{_example(first)}")
    return Text("\n".join([*lines, *encoded.notes]))
