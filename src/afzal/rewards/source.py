"""Rewards of answers, by a saved reward model or any function of two texts. Larger is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch

from afzal import config
from afzal.data.turns import assistant_turn
from afzal.errors import AfzalError
from afzal.folders.compatibility import refuse_other_size
from afzal.folders.load import refuse_another_tokenizer
from afzal.model.load import context_of, context_of_model, load_model, vocabulary_of
from afzal.model.logprobs import score as logprob_score
from afzal.model.probe import Sharing, choose_common_sharing, choose_sharing
from afzal.model.reward import head_scores, load_reward_model, refuse_language_model, shift_of
from afzal.model.speakers import open_speaker
from afzal.objectives import names_function
from afzal.records import Item, Response, Turns, media_of
from afzal.rewards.assess import ScoreBatch, score_items
from afzal.rewards.functions import CONTRACT, by_text, own_function, place
from afzal.tokens import Branch, Speaker
from afzal.tokens.batch import Batch
from afzal.train.feed import Layout


class Rewarder(Protocol):
    """``(prompts, answers, ended, columns) -> rewards``, one of each per answer; larger is better.

    ``ended`` says which answers ended with EOS; the others were truncated, and a reward model reads them without an end
    mark. None means that no answer was truncated. ``columns`` are the other columns of each answer's row, for functions
    that ask for them; None if no rows are known.
    """

    def __call__(
        self,
        prompts: Sequence[Turns],
        answers: Sequence[str],
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> list[float]: ...


Columns = Sequence[Mapping[str, Any]]
LoadModel = Callable[[str, torch.device], Any]


@dataclass(frozen=True, slots=True)
class Loaders:
    """How models that score answers are opened on a device; by default unsharded.

    Attributes:
        language: for implicit rewards.
    """

    reward: LoadModel = lambda path, device: load_reward_model(path, device=device)
    language: LoadModel = lambda path, device: load_model(path, device=device)


def reward_source(
    spec: str,
    *,
    device: torch.device | str = "cpu",
    max_tokens: int = 1024,
    tokens_per_forward: int = 8192,
    eos_token: str | None = None,
    loaders: Loaders | None = None,
) -> Rewarder:
    """The rewarder that ``spec`` names.

    Args:
        spec: the folder or hub id of a reward model, whose score (the mean over its heads) less its stated shift is the
            reward; or ``module:function`` or ``file.py:function`` (:func:`afzal.rewards.functions.by_text`).
        max_tokens: longest prompt + answer that a reward model reads; longer ones are truncated.
        eos_token: the end of an answer for the reward model; default: the end it was trained with, if its folder is a
            run that names one, else its tokenizer's EOS.

    Returns:
        A rewarder that raises an error for a reward that is not finite, naming the prompt and the answer.

    Raises:
        AfzalError: there is no such folder, file or function, or the folder holds no reward model.
    """
    if names_function(spec):
        return _checked(by_text(own_function(spec, "reward", CONTRACT), spec), spec)
    on = torch.device(device)
    scores, sharing, context = reward_scorer(spec, "reward", max_tokens, on, loaders)
    layout = Layout(sharing, tokens_per_forward, on)
    speaker = replace(speaker_as_trained(spec, eos_token), context=context)
    return _checked(_Reader(scores, speaker, layout, max_tokens).rewards, spec)


def implicit_rewards(
    policy: str,
    reference: str,
    *,
    beta: float = 0.1,
    device: torch.device | str = "cpu",
    max_tokens: int = 1024,
    tokens_per_forward: int = 8192,
    loaders: Loaders | None = None,
) -> Rewarder:
    """A policy's implicit rewards beta (log pi - log pi_ref) of complete answers, in nats (Rafailov et al. 2023, arXiv
    2305.18290, eq. 5, up to a constant per prompt).

    Args:
        policy, reference: folders or hub ids of language models with the same tokenizer.
        max_tokens: longest prompt + answer; longer ones are truncated.

    Raises:
        AfzalError: a model cannot be loaded, or the two do not belong together.
    """
    place, speaker = torch.device(device), speaker_as_trained(policy)
    scores, sharing, context = implicit_scorer(policy, reference, beta, max_tokens, place, speaker.tokenizer, loaders)
    layout = Layout(sharing, tokens_per_forward, place)
    reader = _Reader(scores, replace(speaker, context=context), layout, max_tokens)
    return _checked(reader.rewards, f"{policy} against {reference}")


def speaker_as_trained(path: str, eos_token: str | None = None) -> Speaker:
    """The speaker of a model, whose responses end as in training.

    A response is scored at its last token, so the end token that a run names replaces the tokenizer's EOS.

    Args:
        eos_token: an end token that takes precedence.

    Raises:
        AfzalError: as for :func:`afzal.model.speakers.open_speaker`.
    """
    return open_speaker(path, eos_token=eos_token or config.stated(path).get("eos_token"))


def reward_scorer(
    spec: str, setting: str, max_tokens: int, device: torch.device, loaders: Loaders | None = None
) -> tuple[ScoreBatch, Sharing, int | None]:
    """A reward model as a scorer ``[B, heads]`` of batches (less its stated shift), how it shares prompts, and its
    context.

    Args:
        setting: the setting that names the model, for messages.
    """
    refuse_language_model(spec, setting)
    model = (loaders or Loaders()).reward(spec, device).requires_grad_(False)
    shift = shift_of(model)
    return (
        lambda batch: head_scores(model, batch) - shift,
        choose_sharing(model, max_tokens)[0],
        context_of(model.config),
    )


def implicit_scorer(
    policy: str,
    reference: str,
    beta: float,
    max_tokens: int,
    device: torch.device,
    tokenizer: Any,
    loaders: Loaders | None = None,
) -> tuple[ScoreBatch, Sharing, int | None]:
    """A scorer of implicit rewards ``[B, 1]``, how both models share prompts, and the smaller of their contexts."""
    subject = f"the reference {reference}"
    refuse_another_tokenizer(tokenizer, reference, subject)
    load = (loaders or Loaders()).language
    models = [load(path, device).requires_grad_(False) for path in (policy, reference)]
    refuse_other_size(vocabulary_of(models[0]), vocabulary_of(models[1]), subject)
    sharing = choose_common_sharing(models, max_tokens)

    def rewards(batch: Batch) -> torch.Tensor:
        policy_logps, reference_logps = (logprob_score(model, batch).logps for model in models)
        return beta * (policy_logps - reference_logps)[:, None]

    contexts = [context for model in models if (context := context_of_model(model)) is not None]
    return rewards, sharing, min(contexts, default=None)


def _checked(rewarder: Rewarder, spec: str) -> Rewarder:
    def rewards(
        prompts: Sequence[Turns],
        answers: Sequence[str],
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> list[float]:
        values = rewarder(prompts, answers, ended, columns)
        for prompt, answer, value in zip(prompts, answers, values, strict=True):
            if not math.isfinite(value):
                raise AfzalError(
                    f"the reward is {value}",
                    where=place(prompt, answer),
                    why=f"it comes from {spec}",
                    remedy="fix the reward so that it is a finite number for every answer",
                )
        return values

    return rewards


@dataclass(frozen=True, slots=True)
class _Reader:
    """Scores batches of answers with a model."""

    scores: ScoreBatch
    speaker: Speaker
    layout: Layout
    max_tokens: int

    def rewards(
        self,
        prompts: Sequence[Turns],
        answers: Sequence[str],
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> list[float]:
        refuse_unread_media(self.speaker, prompts)
        items, finished = _items(prompts, answers), [True] * len(answers) if ended is None else list(ended)
        places = [(k, r) for k, item in enumerate(items) for r in range(len(item.responses))]
        cut_answers = {place for place, is_whole in zip(places, finished, strict=True) if not is_whole}
        longest = self.speaker.limit_tokens(self.max_tokens)
        scored, _ = score_items(self.scores, items, self.speaker, self.layout, max_tokens=longest, cut=cut_answers)
        scores = np.concatenate([s.scores for s in scored]) if scored else np.zeros(0)
        unread = np.flatnonzero(np.isnan(scores)).tolist()
        rows = [(prompts[k], answers[k], finished[k]) for k in unread]
        for k, value in zip(unread, self._unread(rows, longest), strict=True):
            scores[k] = value
        return scores.tolist()

    def _unread(self, rows: Sequence[tuple[Turns, str, bool]], longest: int) -> list[float]:
        """Score answers that no data row could hold (empty, or with tokens that do not round-trip) by their exact
        tokens."""
        if not rows:
            return []
        prompts = [p for p, _, _ in rows]
        prompt_room = longest - 1 if any(map(media_of, prompts)) else longest // 2  # media are never cut
        prompt_trees = self.speaker.prompt_trees(prompts, max_tokens=max(1, prompt_room))
        encoded = self.speaker.codec.encode([answer for _, answer, _ in rows], markers=False)
        trees = []
        for n, ((prompt, _, ended), t, answer_ids) in enumerate(zip(rows, prompt_trees, encoded, strict=True)):
            end = self.speaker.response_end(chat=not isinstance(prompt, str))
            text = answer_ids[: longest - len(t.prompt) - 1]
            branch = np.asarray([*text, end] if ended or not text else text, dtype=np.int32)
            branches = (Branch(branch, np.ones(len(branch), dtype=bool)),)
            trees.append(replace(t, item_id=str(n), branches=branches))
        by_item: dict[str, float] = {}
        with torch.no_grad():
            for batch in self.layout.batches(trees):
                values = self.scores(batch).mean(1).double().tolist()
                by_item |= {t.item_id: value for (t, _), value in zip(batch.sources, values, strict=True)}
        return [by_item[str(n)] for n in range(len(rows))]


def refuse_unread_media(speaker: Speaker, prompts: Sequence[Turns]) -> None:
    """Refuse prompts with images or sounds if the model reads only text, since it would silently score the text alone.

    Raises:
        AfzalError: there is such a prompt.
    """
    if speaker.reader is None and any(map(media_of, prompts)):
        raise AfzalError(
            "the scoring model reads only text, and a prompt has images or sounds",
            remedy="a model with a processor, or prompts without them",
        )


def _items(prompts: Sequence[Turns], answers: Sequence[str]) -> list[Item]:
    """One item per run of consecutive equal prompts, so that a prompt is read once for all its answers."""
    rows, items = list(zip(prompts, answers, strict=True)), []
    for prompt, group in groupby(rows, key=lambda row: row[0]):
        chat = not isinstance(prompt, str)
        responses = tuple(Response(assistant_turn(answer) if chat else answer) for _, answer in group)
        items.append(Item(str(len(items)), prompt, responses))
    return items
