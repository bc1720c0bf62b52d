"""Token trees: a prompt followed by its branches.

A branch sees the prompt and itself, never its siblings. K = 1 branch is SFT, KTO or a rollout; K = 2 a pair; K > 2 a
ranking or a group of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from afzal.records import Preference

if TYPE_CHECKING:
    from afzal.tokens.media import Medium


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One response: ``ids`` (int32 ``[C]``, C >= 1) follow the prompt; ``scored`` (bool ``[C]``) marks the tokens whose
    log-probs count (the assistant's own tokens and one final EOS), at least one of them. ``numbers`` are further
    facts about the scored tokens by name, float32 each, such as the advantages of a rollout."""

    ids: np.ndarray
    scored: np.ndarray
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """One item as tokens: ``prompt`` (int32 ``[P]``, P >= 1), branches, and the opinions on them.

    ``preferences``, ``labels`` and ``scores`` (larger is better, None if unknown) index ``branches``. ``media`` are the
    images and sounds of the prompt, in the order of their placeholder tokens. ``types`` marks those tokens (int64
    ``[P]``) under the model's name for it, if the model needs it. ``task`` is the number of the item's task or group,
    for metrics and objectives by task. ``columns`` are further columns of the row, for functions. Neither enters a key.
    """

    item_id: str
    prompt: np.ndarray
    branches: tuple[Branch, ...]
    preferences: tuple[Preference, ...] = ()
    labels: tuple[bool | None, ...] = ()
    scores: tuple[float | None, ...] = ()
    media: tuple[Medium, ...] = ()
    types: Mapping[str, np.ndarray] = field(default_factory=dict)
    task: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the shared layout: the prompt once and every branch."""
        return len(self.prompt) + sum(len(b.ids) for b in self.branches)

    @property
    def prompt_key(self) -> str:
        """Content hash of the prompt; trees with the same prompt are not independent."""
        digest = _shown(self.media)
        digest.update(self.prompt.astype(np.int32).tobytes())
        return digest.hexdigest()[:16]

    def in_pieces(self) -> Tree:
        """The tree with each of its media replaced by a small random piece, always the same for one item."""
        seeds = (hashlib.sha256(f"{self.item_id}\n{k}".encode()).digest()[:6] for k in range(len(self.media)))
        pieces = (m.cropped(int.from_bytes(seed, "big")) for m, seed in zip(self.media, seeds, strict=True))
        return replace(self, media=tuple(pieces))

    def key(self, branch: int) -> str:
        """Content hash of a prompt and one response with its scored tokens; equal keys have equal log-probs under equal
        weights."""
        b = self.branches[branch]
        parts = (self.prompt.astype(np.int32), b.ids.astype(np.int32), b.scored.astype(np.uint8))
        digest = _shown(self.media)
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.tobytes())
        return digest.hexdigest()[:32]


def _shown(media: Sequence[Medium]) -> Any:
    """A hash object that has read the media keys: two images under the same text must never share a key."""
    return hashlib.sha256("".join(f"{m.key}\n" for m in media).encode())


def tree(
    item_id: str, prompt: Sequence[int], branches: Sequence[Sequence[int]], *, pairs: Sequence[Preference] = ()
) -> Tree:
    """A tree from plain ids in which every branch token is scored."""
    built = tuple(Branch(np.asarray(b, dtype=np.int32), np.ones(len(b), dtype=bool)) for b in branches)
    return Tree(item_id, np.asarray(prompt, dtype=np.int32), built, tuple(pairs))


def only_branch(t: Tree, branch: int) -> Tree:
    """The tree with a single one of its branches."""
    single = slice(branch, branch + 1)
    return replace(t, branches=t.branches[single], preferences=(), labels=t.labels[single], scores=t.scores[single])
