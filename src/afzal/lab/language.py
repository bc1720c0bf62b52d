"""The enumerable language: so small that every response can be listed.

A prompt is three of six tokens, a response zero to four of them: 216 prompts with 1555 responses each, and a known gold
reward. Prompts and responses are ordinary text, so the ordinary readers, tokens and recipes train on them: ``413|`` is
a prompt, ``41.`` a response of two tokens, ``.`` the response without tokens. The full stop is the end token, written
out so that no response is an empty text; after four tokens the length limit ends a response without a full stop.

Two rules keep a model inside the language. The output bias of :func:`new_model` bars the separator from responses. The
end after four tokens is not a decision: ``SETTINGS`` cuts the row there.

Legend: X prompts, Y = 1555 responses, T pairs, N rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from afzal.records import Comparison, Item, Response
from afzal.runs import make_folder

N_CONTENT = 6
MAX_LENGTH = 4
SEP, EOS = 6, 7
VOCABULARY = ("0", "1", "2", "3", "4", "5", "|", ".")
KAPPA = 0.8
"""Weight of the non-local term of the reward (the parity of the response's sum must match the prompt's)."""

N_TRAIN, N_HELD_OUT = 160, 32

SETTINGS: Mapping[str, Any] = {
    "eos_token": VOCABULARY[EOS],
    "max_tokens": 4 + MAX_LENGTH,
    "sample_tokens": MAX_LENGTH,
    "clean": False,
}
"""The settings a recipe needs for this language: responses end with the end token or at the limit, and repeated rows
are independent samples and are kept."""

_SFT_LENGTHS = (0.05, 0.15, 0.2, 0.35, 0.25)
_SFT_COPY = 0.35


def _enumerate_responses() -> np.ndarray:
    rows = [y + (-1,) * (MAX_LENGTH - n) for n in range(MAX_LENGTH + 1) for y in product(range(N_CONTENT), repeat=n)]
    return np.asarray(rows, dtype=np.int64)


RESPONSES: np.ndarray = _enumerate_responses()
"""``[Y, 4]`` every response, shorter ones first, -1 after the end."""
LENGTHS: np.ndarray = (RESPONSES >= 0).sum(1)
"""``[Y]`` content tokens per response."""


def prompts(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The training prompts ``[160, 3]`` and the held-out prompts ``[32, 3]``, in a fixed order for each seed.

    The order comes from a hash, not a random generator, so it is the same under every library version.
    """
    by_hash = sorted(
        product(range(N_CONTENT), repeat=3), key=lambda x: hashlib.sha256(f"{seed}:{x}".encode()).hexdigest()
    )
    order = np.asarray(by_hash, dtype=np.int64)
    return order[:N_TRAIN], order[N_TRAIN : N_TRAIN + N_HELD_OUT]


def reward(prompt: np.ndarray, kappa: float = KAPPA) -> np.ndarray:
    """Gold reward ``[X, Y]`` of every response to each prompt ``[X, 3]``; larger is better.

    .9 per copied token, .5 per rise, -.7 per repetition, -.35 per token away from length 3, and one non-local term,
    ± kappa / 2 for the parity of the sum. ``kappa=0`` gives a reward that is additive over tokens. Values are rounded
    to 1e-9, so that equal rewards are equal numbers.
    """
    y, x = RESPONSES[None], np.asarray(prompt, dtype=np.int64)
    copied = (y[..., :3] == x[:, None]).sum(-1)
    both = RESPONSES[:, 1:] >= 0
    rises = ((RESPONSES[:, 1:] > RESPONSES[:, :-1]) & both).sum(1)
    repeats = ((RESPONSES[:, 1:] == RESPONSES[:, :-1]) & both).sum(1)
    additive = 0.9 * copied + 0.5 * rises - 0.7 * repeats - 0.35 * abs(LENGTHS - 3)
    parity = np.where(RESPONSES >= 0, RESPONSES, 0).sum(1) % 2 == x.sum(1, keepdims=True) % 2
    return np.round(additive + kappa * (parity - 0.5), 9)


def gold(prompt: str, response: str) -> float:
    """Gold reward of one response given as text, with or without its full stop; usable as ``--reward``.

    Raises:
        ValueError: one of the texts is outside the language.
    """
    index = response_index(response) if response_index(response) is not None else response_index(response + ".")
    if index is None or len(prompt) != 4 or any(c not in VOCABULARY[:N_CONTENT] for c in prompt[:3]):
        raise ValueError(f"{prompt!r} and {response!r} are not a prompt and a response of the language")
    return float(reward(np.array([[int(c) for c in prompt[:3]]]))[0, index])


def prompt_text(prompt: Sequence[int] | np.ndarray) -> str:
    """``[4, 1, 3]`` as ``"413|"``."""
    return "".join(str(int(t)) for t in prompt) + VOCABULARY[SEP]


def response_text(response: Sequence[int] | np.ndarray) -> str:
    """``[4, 1, -1, -1]`` as ``"41."``, and ``[4, 1, 3, 5]`` as ``"4135"``."""
    content = "".join(str(int(t)) for t in response if t >= 0)
    return content if len(content) == MAX_LENGTH else content + VOCABULARY[EOS]


def response_index(text: str) -> int | None:
    """Position of a response's text in :data:`RESPONSES`; None if the text is outside the language."""
    content = text[:MAX_LENGTH].removesuffix(VOCABULARY[EOS])
    if any(c not in VOCABULARY[:N_CONTENT] for c in content) or response_text([int(c) for c in content]) != text:
        return None
    shorter = sum(N_CONTENT**n for n in range(len(content)))
    return shorter + int(content or "0", N_CONTENT)


def sft_policy(prompt: np.ndarray) -> np.ndarray:
    """Probabilities ``[X, Y]`` with which :func:`sft_items` draws responses to prompts ``[X, 3]``.

    The length is drawn first, then uniform content; each of the first three tokens is replaced by the prompt's token at
    the same position with probability .35.
    """
    y, x = RESPONSES[None], np.asarray(prompt)[:, None]
    token = np.full((len(prompt), *RESPONSES.shape), 1 / N_CONTENT)
    token[..., :3] = _SFT_COPY * (y[..., :3] == x) + (1 - _SFT_COPY) / N_CONTENT
    return np.asarray(_SFT_LENGTHS)[LENGTHS] * np.where(y >= 0, token, 1.0).prod(-1)


def sample(probabilities: np.ndarray, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each entry of ``index`` ``[N]``, a response index drawn from row ``index[n]`` of ``[X, Y]``."""
    edges = np.cumsum(probabilities, axis=1)
    rows = edges / edges[:, -1:] + np.arange(len(edges))[:, None]  # one ascending list: row x fills (x, x + 1]
    places = np.searchsorted(rows.ravel(), index + rng.random(len(index)), side="right") - index * edges.shape[1]
    return np.minimum(places, edges.shape[1] - 1)


def sft_items(prompt: np.ndarray, n: int, rng: np.random.Generator) -> list[Item]:
    """``n`` demonstrations for prompts drawn uniformly from ``[X, 3]``."""
    prompt_index = rng.integers(len(prompt), size=n)
    responses = sample(sft_policy(prompt), prompt_index, rng)
    return [
        Item(f"sft-{k}", prompt_text(prompt[x]), (Response(response_text(RESPONSES[y])),))
        for k, (x, y) in enumerate(zip(prompt_index, responses, strict=True))
    ]


def sample_pairs(policy: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``n`` pairs of two independent responses of ``policy`` (probabilities ``[X, Y]``) to a uniform prompt.

    Returns:
        The prompt index and the two response indices of each pair, ``[T]`` each; pairs of equal responses are redrawn.
    """
    parts: list[np.ndarray] = []
    while sum(len(p) for p in parts) < n:
        prompt_index = rng.integers(len(policy), size=n)
        triples = np.stack([prompt_index, sample(policy, prompt_index, rng), sample(policy, prompt_index, rng)], axis=1)
        parts.append(triples[triples[:, 1] != triples[:, 2]])
    prompt, first, second = np.concatenate(parts)[:n].T
    return prompt, first, second


def graded(gaps: np.ndarray) -> np.ndarray:
    """Bradley–Terry probability ``[T]`` that the first is better, from its reward gap over the second."""
    return 1 / (1 + np.exp(-gaps))


def noisy(gaps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One Bradley–Terry vote per pair: 1 if the first wins, else 0."""
    return (rng.random(len(gaps)) < graded(gaps)).astype(float)


def deterministic(gaps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One vote per pair for the higher reward; at random between equals."""
    return np.where(gaps == 0, rng.random(len(gaps)) < 0.5, gaps > 0).astype(float)


def flipped(p_first: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """The same labels, each reversed with probability ``rate``."""
    return np.where(rng.random(len(p_first)) < rate, 1 - p_first, p_first)


def with_ties(gaps: np.ndarray, rng: np.random.Generator, nu: float = 1.5) -> np.ndarray:
    """Votes with ties (1, 0, or .5) from the Rao–Kupper model; ``nu = 1`` gives no ties, larger values more."""
    first, second = graded(gaps - np.log(nu)), graded(-gaps - np.log(nu))
    draw = rng.random(len(gaps))
    return np.where(draw < first, 1.0, np.where(draw < first + second, 0.0, 0.5))


def crowd(gaps: np.ndarray, reliability: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Votes ``[A, T]`` of annotators who report a noisy vote correctly with probability ``reliability``, else reversed.

    1 is faithful, .5 random, 0 adversarial (Chen 2013, CrowdBT).
    """
    return np.stack([flipped(noisy(gaps, rng), 1 - p_faithful, rng) for p_faithful in reliability])


def pair_items(
    prompt: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray], p_first: np.ndarray, prefix: str = "pair"
) -> list[Item]:
    """Items of two responses with their votes.

    Args:
        prompt: ``[X, 3]``, which the first array of ``pairs`` indexes.
        pairs: as :func:`sample_pairs` returns them.
        p_first: labels ``[T]``, or ``[A, T]`` for A annotators: 1 and 0 are votes, .5 a tie, else a stated probability.
    """
    votes = np.atleast_2d(p_first)
    items = []
    for k, (x, a, b) in enumerate(zip(*pairs, strict=True)):
        texts = tuple(Response(response_text(RESPONSES[y])) for y in (a, b))
        names = [f"annotator-{i}" for i in range(len(votes))] if len(votes) > 1 else [None]
        comparisons = tuple(_vote(float(p), annotator) for p, annotator in zip(votes[:, k], names, strict=True))
        items.append(Item(f"{prefix}-{k}", prompt_text(prompt[x]), texts, comparisons))
    return items


def _vote(p_first: float, annotator: str | None) -> Comparison:
    outcome = "tie" if p_first == 0.5 else "first" if p_first > 0.5 else "second"
    stated = None if p_first in (0.0, 0.5, 1.0) else p_first
    return Comparison(0, 1, outcome, probability=stated, annotator=annotator)


def write_demonstrations(items: Iterable[Item], path: Path) -> Path:
    """Items with one response as JSON lines of ``prompt`` and ``completion``."""
    return _write(({"prompt": i.prompt, "completion": i.responses[0].turns} for i in items), path)


def write_pairs(items: Iterable[Item], path: Path) -> Path:
    """Items with one vote that orders their two responses as JSON lines of ``prompt``, ``chosen`` and ``rejected``."""
    return _write((ordered(item) for item in items), path)


def ordered(item: Item) -> dict[str, Any]:
    """An item with one certain vote as a row of ``prompt``, ``chosen`` and ``rejected``."""
    (vote,) = item.votes
    if not isinstance(vote, Comparison) or vote.outcome not in ("first", "second") or vote.probability is not None:
        raise ValueError(f"{item.id}: only a certain vote for one of two responses can be written as a pair")
    first, second = (r.turns for r in item.responses)
    chosen, rejected = (first, second) if vote.outcome == "first" else (second, first)
    return {"prompt": item.prompt, "chosen": chosen, "rejected": rejected}


def _write(rows: Iterable[dict[str, Any]], path: Path) -> Path:
    make_folder(path.parent)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokenizer() -> Any:
    """A fast tokenizer of the eight symbols, one per character.

    The end token is not a special token, since the texts contain it. Any other character is read as the separator, so a
    text outside the language does not survive the round trip; its row is dropped and the reason counted.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {symbol: k for k, symbol in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=VOCABULARY[SEP]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def new_model(seed: int = 0) -> Any:
    """A Phi of 2 layers and width 64 with random weights in float32: about 101 thousand parameters, no dropout.

    Phi, because its output layer has a bias: -60 there bars the separator from responses (its probability is below
    1e-20, and so is its gradient), through any recipe and in plain `transformers` alike.
    """
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PhiForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[SEP] = 0.0
        model.lm_head.bias[SEP] = -60.0
    return model


def save_model(folder: Path, seed: int = 0) -> Path:
    """Save a model with random weights and the tokenizer as an ordinary folder, the start of supervised training."""
    new_model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
