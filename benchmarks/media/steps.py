"""The stages of the demonstration, each by Afzal's own functions. All paths are passed as arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afzal import config, data, recipes
from afzal.generate.run import generate
from afzal.model.load import load_model
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.speakers import open_speaker
from afzal.tokens import Tree
from afzal.train.feed import Layout
from benchmarks.media.world import Size

_TOKENS_PER_FORWARD = 4096
_COMMON = {
    "batch_size": 32,
    "eval_fraction": 0.0,
    "device": "cpu",
    "save_every_minutes": 0,
    "train_towers": True,
    "sample_prompts": 0,
    "tokens_per_forward": _TOKENS_PER_FORWARD,
}
_SFT = {"lr": 2e-3, "warmup": 20, "lr_schedule": "cosine"}
_PREFER = {"lr": 3e-4, "warmup": 10, "lr_schedule": "cosine", "batch_size": 64, "train_towers": False}
OBJECTIVES = {"dpo": "dpo", "mpo": "0.8*dpo + 0.2*bco_pair + 1.0*nll"}
"""Objectives for training on preferences: DPO, and MPO (Wang et al. 2024, arXiv 2411.10442), whose last term keeps up
the likelihood of the preferred caption."""


def learn_captions(model: Path, rows: Path, to: Path, size: Size) -> None:
    """SFT on sloppy captions, including the towers, since the model has random weights."""
    _train("sft", size.sft_updates, model, rows, to, size, _SFT)


def prefer(objective: str, model: Path, rows: Path, to: Path, size: Size, **changed: Any) -> None:
    """Train on noisy preferences with one of :data:`OBJECTIVES`, towers frozen."""
    named = {"objective": OBJECTIVES[objective]}
    _train("prefer", size.preference_updates, model, rows, to, size, {**_PREFER, **named, **changed})


def _train(method: str, updates: int, model: Path, rows: Path, to: Path, size: Size, own: Mapping[str, Any]) -> None:
    settings = {"model": str(model), "data": str(rows), "out": str(to), "max_steps": updates, "epochs": float(updates)}
    recipes.train(config.make(method, **{**settings, **_COMMON, "seed": size.seed, **own}))


def measure(model: Path, rows: Path, to: Path) -> None:
    """Write the log-probs of every held-out item's captions, the true one first, with real and with blank media."""
    loaded, speaker = load_model(str(model)), open_speaker(str(model))
    trees = speaker.encode(data.read(str(rows)).items, max_tokens=1024).trees
    layout = Layout(choose_sharing(loaded, media_trees=trees[:1])[0], _TOKENS_PER_FORWARD)
    blank = [replace(t, media=tuple(m.without_content() for m in t.media)) for t in trees]
    logps = {name: _captions(loaded, variant, layout).tolist() for name, variant in (("seen", trees), ("blank", blank))}
    to.write_text(json.dumps(logps) + "\n", "utf-8")


def _captions(model: Any, trees: Sequence[Tree], layout: Layout) -> np.ndarray:
    """``[X, captions]`` summed log-probs in nats."""
    made: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for batch in layout.batches(trees):
            logps = score(model, batch).logps.double().numpy().reshape(len(batch.item_ids), -1)
            made |= dict(zip(batch.item_ids, logps, strict=True))
    return np.stack([made[t.item_id] for t in trees])


def answer(model: Path, rows: Path, to: Path) -> None:
    """Write the greedy caption of every held-out medium, with the media in the same folder."""
    settings = {"model": str(model), "prompts": str(rows), "out": str(to / "answers.jsonl")}
    to.mkdir()
    generate(config.GenerateConfig(**settings, temperature=0.0, max_new_tokens=12, batch_size=128))
