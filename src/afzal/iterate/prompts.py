"""The prompts of an iteration: those trained on in each round, and the held-out ones. Loads no model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from afzal import data
from afzal.config import IterateConfig
from afzal.data.turns import answer_text
from afzal.errors import AfzalError
from afzal.generate import Prompt
from afzal.prepare.columns import requested_columns, requests_of_rewards
from afzal.records import Item, Turns, labels, prompt_key, template_fields
from afzal.tokens import Speaker, Tree, any_chat
from afzal.tokens.assistant_turns import remark_texts

T = TypeVar("T")

_MOST_HELD_OUT = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its token ids, and the answer to imitate if the data has one.

    ``template_fields`` are its row's fields for the chat template, which are copied to the items made from its answers.
    ``columns`` are the other columns of its row that rewards ask for. ``tree`` holds the images and sounds of a prompt
    that has any, else it is None.
    """

    prompt: Turns
    ids: tuple[int, ...]
    demonstration: str = ""
    template_fields: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    tree: Tree | None = None

    @property
    def input(self) -> Prompt:
        """The prompt as a model reads it."""
        return self.ids if self.tree is None else self.tree


@dataclass(frozen=True, slots=True)
class Questions:
    """``groups`` holds the questions of each prompt, in the order in which rounds use them; ``held_out`` are never
    trained on. ``chat`` says whether any are conversations; ``notes`` list omissions. ``fingerprint`` identifies the
    source's content; ``columns`` is the hash of the columns that rewards ask for, empty if they ask for none."""

    groups: list[list[Question]]
    held_out: list[Question]
    per_round: int
    chat: bool
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    columns: str = ""


def read_questions(config: IterateConfig, speaker: Speaker) -> Questions:
    """Read the prompts of a run, hold some out, and shuffle the rest by the seed.

    Prompts that differ only in white space or case count as one, so that no round sees another's prompts.

    Raises:
        AfzalError: the source cannot be read, or too few prompts are left.
    """
    requests = requests_of_rewards(config.reward, config.watch_reward, config.cost)
    request = data.merged_request(requests)
    dataset = data.read(config.prompts, columns=config.columns or None, format=config.data_format, request=request)
    held_out_items = data.read(config.held_out_prompts, request=request).items if config.held_out_prompts else []
    names = requested_columns(requests, [*dataset.items, *held_out_items], config.prompts)
    chat = any_chat([*dataset.items, *held_out_items])
    notes = [speaker.notice] if chat and speaker.notice else []
    remarks: Counter[str] = Counter()
    by_key = _groups(dataset.items, config, speaker, notes, remarks, names)
    held_out_groups = _groups(
        held_out_items, config.model_copy(update={"pairing": "best_worst"}), speaker, notes, remarks, names
    )
    notes += remark_texts(remarks)
    if config.held_out_prompts and not held_out_groups:
        raise AfzalError(
            "there is no held-out prompt that leaves room for an answer",
            where=config.held_out_prompts,
            remedy="a larger max_tokens, or shorter prompts",
        )
    order = sorted(by_key, key=lambda key: sort_key(key, config.seed))
    if held_out_groups:
        shared = [key for key in order if key in held_out_groups]
        notes += [f"{len(shared)} prompts are held out too, and so not trained on"] if shared else []
        held_out_questions, order = list(held_out_groups.values()), [key for key in order if key not in held_out_groups]
    else:
        n_held = config.held_out or max(1, min(_MOST_HELD_OUT, len(order) // 5))
        held_out_questions, order = [by_key[key] for key in order[:n_held]], order[n_held:]
    if not order:
        raise AfzalError(
            f"no prompt is left to train on: {len(by_key)} were read, {len(held_out_questions)} are held out",
            where=config.prompts,
            remedy="give more prompts, or a smaller held_out",
        )
    per_round = config.prompts_per_round or max(1, len(order) // config.rounds)
    notes += _shortage_note(len(order), per_round, config)
    groups = [by_key[key] for key in order]
    held_out = [q[0] for q in held_out_questions]
    rows = [q.columns for q in (*(q for group in groups for q in group), *held_out)]
    columns = data.columns_hash(rows) if names else ""
    return Questions(groups, held_out, per_round, chat, dataset.fingerprint, notes, columns)


def sort_key(key: str, seed: int) -> str:
    """The sort key of a prompt, from its :func:`afzal.records.prompt_key`.

    It is the one used by splits (`data.splitting`): the first prompts, which are held out, are also held out by
    trainings on the same rows with this seed.
    """
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def round_groups(groups: Sequence[T], number: int, size: int, *, reuse: bool) -> list[T]:
    """The groups of round ``number`` (from 1): fresh ones until none are left; with ``reuse``, then from the start
    again."""
    first = (number - 1) * size
    if reuse:
        return [groups[(first + i) % len(groups)] for i in range(min(size, len(groups)))]
    return list(groups[first : first + size])


def _shortage_note(n: int, per_round: int, config: IterateConfig) -> list[str]:
    """The note if prompts will run out."""
    if n >= per_round * config.rounds:
        return []
    last = n // per_round + 1
    sentence = f"{n} prompts at {per_round} per round run out in round {last} of {config.rounds}"
    if config.reuse_prompts:
        return [f"{sentence}: from there on they are reused"]
    return [f"{sentence}: the run will end there (reuse_prompts, a smaller prompts_per_round, or more prompts)"]


def _groups(
    items: Sequence[Item],
    config: IterateConfig,
    speaker: Speaker,
    notes: list[str],
    remarks: Counter[str],
    names: Sequence[str],
) -> dict[str, list[Question]]:
    """Questions by prompt: one each, or for spin one per answer in the data."""
    kept: list[tuple[str, Item, str]] = []
    distinct: set[tuple[str, str, str]] = set()
    without = 0
    for item in items:
        answer = own_answer(item) if config.pairing == "spin" else ""
        without += answer is None
        key = prompt_key(item)
        facts = [template_fields(item), *({name: item.extra.get(name)} for name in names)]
        this = (key, answer or "", json.dumps(facts, sort_keys=True, default=str))
        if answer is not None and this not in distinct:
            distinct.add(this)
            kept.append((key, item, answer))
    if without:
        notes.append(f"{without} rows have no answer to imitate and are left out")
    prompts = [item for _, item, _ in kept]
    trees = speaker.prompt_trees(prompts, remarks=remarks) if prompts else []
    limit = speaker.limit_tokens(config.max_tokens) - config.max_new_tokens
    long = sum(len(tree.prompt) > limit for tree in trees)
    if long:
        notes.append(f"{long} prompts are left out: they leave fewer than max_new_tokens of max_tokens for an answer")
    groups: dict[str, list[Question]] = {}
    for (key, item, answer), tree in zip(kept, trees, strict=True):
        if len(tree.prompt) <= limit:
            (columns,) = data.column_values([item], names)
            media_tree = tree if tree.media else None
            question = Question(
                item.prompt, tuple(tree.prompt.tolist()), answer, template_fields(item), columns, media_tree
            )
            groups.setdefault(key, []).append(question)
    return groups


def own_answer(item: Item) -> str | None:
    """The data's answer to a prompt: the only one, or the one labelled good; None if there is none."""
    if not item.responses:
        return None
    good = 0 if not item.votes else next((k for k, label in enumerate(labels(item)) if label), None)
    text = None if good is None else answer_text(item.responses[good].turns)
    return text if text and text.strip() else None
