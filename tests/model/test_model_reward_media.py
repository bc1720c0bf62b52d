"""Reward models of families that `transformers` has no sequence classifier for: the head, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_multimodal import FAMILIES, made, picture, tone

from afzal.errors import AfzalError
from afzal.folders.kinds import is_reward_model
from afzal.folders.load import load_causal_model
from afzal.media import in_row, media_part
from afzal.model.attention import stock_attention
from afzal.model.probe import choose_sharing
from afzal.model.reward import choose_pad, head_scores, load_reward_model, save_reward_model
from afzal.model.speakers import open_speaker
from afzal.records import Item, Message, Response
from afzal.tokens.batch import collate
from afzal.tokens.tree import Tree

pytest.importorskip("PIL", reason="needs the extra vision")
pytest.importorskip("soundfile", reason="needs the extra audio")


def trees_of(speaker: Any, kind: str) -> list[Tree]:
    shown = in_row("image", picture(1)) if kind == "image" else in_row("audio", tone(440))
    prompt = (Message("user", (media_part(shown), {"type": "text", "text": "What?"})),)
    answers = tuple(Response((Message("assistant", text),)) for text in ("red", "a blue one"))
    return speaker.encode([Item("a", prompt, answers)], max_tokens=500).trees


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_heads_of_the_last_hidden_state_and_survive_saving(family: str, tmp_path: Path) -> None:
    model, processor = made(family)
    model.save_pretrained(tmp_path / "lm")
    processor.save_pretrained(tmp_path / "lm")
    scorer, speaker = load_reward_model(str(tmp_path / "lm"), seed=3), open_speaker(str(tmp_path / "lm"))
    trees = trees_of(speaker, FAMILIES[family][0])
    batch = collate(trees, "unshared")
    with torch.no_grad():
        hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state
        last = [len(trees[0].prompt) + len(b.ids) - 1 for b in trees[0].branches]
        expected = torch.stack([hidden[row, at] @ scorer.score.weight[0] for row, at in enumerate(last)])
        assert torch.allclose(head_scores(scorer, batch)[:, 0], expected, atol=1e-5)
        sharing, _ = choose_sharing(scorer, media_trees=trees)
        assert sharing == ("unshared" if family == "gemma3" else "shared")
        assert torch.allclose(head_scores(scorer, collate(trees, sharing))[:, 0], expected, atol=1e-4)
        choose_pad(scorer, speaker.tokenizer, {speaker.tokenizer.eos_token_id})
        save_reward_model(scorer, speaker.files, tmp_path / "rm", shift=0.5)
        again = load_reward_model(str(tmp_path / "rm"))
        with stock_attention(again):
            assert torch.allclose(head_scores(again, batch)[:, 0], expected, atol=1e-5)
    assert is_reward_model(tmp_path / "rm")
    assert open_speaker(str(tmp_path / "rm")).reader is not None
    with pytest.raises(AfzalError, match="is a reward model"):
        load_causal_model(str(tmp_path / "rm"))
