"""mDPO and RLHF-V on rows with images: pieces of media, marks of differences, and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_multimodal import made, picture, tone
from safetensors.torch import load_file

from afzal import config, objectives, recipes, runs
from afzal.errors import AfzalError
from afzal.media import Media, in_row, media_part
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.reference import Frozen
from afzal.model.speakers import speaker_of
from afzal.records import Item, Message, Preference, Response
from afzal.tokens.batch import Batch, collate
from afzal.tokens.changes import with_changes
from afzal.tokens.media import Change, decode_image, decode_sound
from afzal.tokens.tree import Tree, tree
from afzal.train.evaluate import losses_of, score_batch
from afzal.train.method import Method

pytest.importorskip("PIL", reason="needs the extra vision")
pytest.importorskip("soundfile", reason="needs the extra audio")


def shown(number: int, name: str = "a") -> Item:
    prompt = (Message("user", (media_part(in_row("image", picture(number))), {"type": "text", "text": "What?"})),)
    return Item(name, prompt, tuple(Response((Message("assistant", text),)) for text in ("A red one.", "blue")))


def case() -> tuple[Any, Method, Batch]:
    """A policy that differs from its reference, mDPO, and a batch with one picture pair and one text pair."""
    model, processor = made("llava")
    reference, _ = made("llava", seed=1)
    text = replace(shown(1, "text"), prompt=(Message("user", "What?"),))
    trees = speaker_of(model, processor).encode([shown(0), text], max_tokens=99).trees
    for each in (model, reference):
        choose_sharing(each)
    paired = [replace(t, preferences=(Preference(0, 1),), labels=(True, False)) for t in trees]
    return model, Method.of(objectives.get("mdpo"), {"beta": 1.0}, Frozen(reference)), collate(paired, "shared")


def terms(method: Method, model: Any, batch: Batch) -> torch.Tensor:
    """The conditional term of each pair: mDPO's loss less the other two."""
    scored = score_batch(model, method, batch)
    losses, _ = objectives.get("mdpo").fn(scored.policy, scored.reference, scored.pairs, beta=1.0)
    rho = scored.policy.logps - scored.reference.logps
    u = rho[scored.pairs.yw_idxs] - rho[scored.pairs.yl_idxs]
    anchor = torch.nn.functional.logsigmoid(rho[scored.pairs.yw_idxs])
    return losses + torch.nn.functional.logsigmoid(u) + anchor


def test_the_conditional_term_is_ln_2_where_the_piece_is_the_whole_and_for_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, method, batch = case()
    with torch.no_grad():
        of_picture, of_text = terms(method, model, batch).tolist()
    assert of_text == pytest.approx(math.log(2), abs=1e-5)
    assert abs(of_picture - math.log(2)) > 1e-4
    monkeypatch.setattr(Tree, "in_pieces", lambda self: self)
    batch.__dict__.pop("in_pieces")
    with torch.no_grad():
        assert terms(method, model, batch).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-5)


def test_the_conditional_term_sends_a_gradient_through_both_passes() -> None:
    """Against central differences along one direction of all weights, in float64."""
    model, method, batch = case()
    model.double()
    method.reference.model.double()

    def loss() -> torch.Tensor:
        scored = score_batch(model, method, batch)
        return losses_of(method, scored, {}, {}).sums[0]

    batch.__dict__["media"] = {k: v.double() if v.is_floating_point() else v for k, v in batch.media.items()}
    pieces = batch.in_pieces
    pieces.__dict__["media"] = {k: v.double() if v.is_floating_point() else v for k, v in pieces.media.items()}
    loss().backward()
    rng = torch.Generator().manual_seed(0)
    moved = [
        (p, torch.randn(p.shape, generator=rng, dtype=torch.float64)) for p in model.parameters() if p.grad is not None
    ]
    slope = float(sum((p.grad * d).sum() for p, d in moved))
    ends = []
    for step in (1e-4, -2e-4):
        with torch.no_grad():
            for p, d in moved:
                p.add_(step * d)
            ends.append(float(loss()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-2)


def test_pieces_are_the_items_own_and_have_the_size_of_the_whole() -> None:
    image, sound = in_row("image", picture(3, 50, 40)), in_row("audio", tone(440, 0.5))
    whole, piece = decode_image(image), decode_image(image, Change("piece", 5))
    assert piece.size == whole.size == (50, 40)
    assert np.array_equal(piece, decode_image(image, Change("piece", 5)))
    assert not np.array_equal(piece, decode_image(image, Change("piece", 6)))
    heard = decode_sound(sound, 16000)
    for seed in range(20):
        kept = decode_sound(sound, 16000, Change("piece", seed))
        at = np.flatnonzero(kept)
        assert kept.shape == heard.shape
        assert at[-1] - at[0] < 0.2 * len(heard) + 1
        assert np.array_equal(kept[at[0] : at[-1] + 1], heard[at[0] : at[-1] + 1])
    model, processor = made("llava")
    first, again, other = (speaker_of(model, processor).encode([shown(0, n)], max_tokens=99).trees[0] for n in "aab")
    assert first.in_pieces().key(0) == again.in_pieces().key(0)
    assert len({first.key(0), first.in_pieces().key(0), other.in_pieces().key(0)}) == 3
    assert isinstance(first.media[0].media, Media)


def test_what_differs_between_two_responses_is_marked_and_what_they_share_is_not() -> None:
    t = with_changes(tree("a", [1], [[5, 6, 7, 9], [5, 8, 7, 3, 9]], pairs=[Preference(0, 1)]))
    assert [b.numbers["changed"].tolist() for b in t.branches] == [[0, 1, 0, 0], [0, 1, 0, 1, 0]]
    scored = np.array([False, True, True, True])
    unread = replace(t, branches=(replace(t.branches[0], scored=scored, numbers={}), t.branches[1]))
    assert with_changes(unread).branches[0].numbers["changed"].tolist() == [1, 0, 0]


def place(folder: Path, rows: int = 6, text: int = 2) -> dict[str, Any]:
    """The settings of a short run on pictures, the last ``text`` rows without any."""
    model, processor = made("llava")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    lines = []
    for k in range(rows):
        (folder / f"{k}.png").write_bytes(picture(k))
        content = [{"type": "image", "path": f"{k}.png"}, {"type": "text", "text": f"What is {k}?"}]
        prompt = [{"role": "user", "content": f"Say {k}." if k >= rows - text else content}]
        sides = {
            name: [{"role": "assistant", "content": f"a {word} one"}]
            for name, word in (("chosen", "red"), ("rejected", "blue"))
        }
        lines.append(json.dumps({"prompt": prompt, **sides}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    given = {"model": str(folder / "model"), "data": str(folder / "data.jsonl"), "max_tokens": 200, "batch_size": 2}
    return given | {"lr": 1e-3, "warmup": 0, "eval_fraction": 0.0, "max_steps": 3, "sample_prompts": 0}


def train(given: dict[str, Any], out: Path, objective: str, **more: Any) -> tuple[list[float], dict[str, Any]]:
    run = recipes.train(config.make("prefer", **given, objective=objective, out=str(out), **more))
    losses = [r["loss"] for r in runs.read_jsonl(run / "metrics.jsonl") if "loss" in r]
    return losses, {n: w.tolist() for n, w in load_file(run / "model.safetensors").items()}


def test_mdpo_trains_on_pictures_and_texts_and_a_cached_reference_changes_nothing(tmp_path: Path) -> None:
    given = place(tmp_path)
    losses, weights = train(given, tmp_path / "frozen", "mdpo")
    assert losses[0] == pytest.approx(3 * math.log(2), abs=1e-4)
    assert (losses, weights) == train(given, tmp_path / "cached", "mdpo", reference="cached")
    assert weights != train(given, tmp_path / "dpo", "dpo")[1]


def test_mdpo_is_refused_where_no_row_has_media(tmp_path: Path) -> None:
    with pytest.raises(AfzalError, match="pieces of them, and no row has any"):
        train(place(tmp_path, text=6), tmp_path / "run", "mdpo")


def test_ddpo_without_weights_is_dpo_and_with_them_another_run(tmp_path: Path) -> None:
    given = place(tmp_path)
    plain, _ = train(given, tmp_path / "dpo", "dpo")
    arguments = {"beta": 0.1, "reduction": "sum"}
    same, _ = train(given, tmp_path / "one", "ddpo", objective_arg={**arguments, "gamma": 1.0})
    heavier, _ = train(given, tmp_path / "five", "ddpo", objective_arg={**arguments, "gamma": 5.0})
    assert same == pytest.approx(plain, abs=1e-5)
    assert heavier[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(heavier[-1] - plain[-1]) > 1e-3


def test_the_gradient_of_mpo_is_the_sum_of_its_parts() -> None:
    model, method, batch = case()
    parts = {"dpo": 0.8, "bco_pair": 0.2, "nll": 1.0}
    whole = replace(method, terms=objectives.bind(" + ".join(f"{w}*{n}" for n, w in parts.items())))

    def gradient(of: Method) -> torch.Tensor:
        model.zero_grad()
        losses = losses_of(of, score_batch(model, of, batch), of.start(), {})
        shares = zip(of.terms, losses.sums, losses.counts, strict=True)
        sum(term.weight * total / n for term, total, n in shares).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    apart = [w * gradient(replace(method, terms=objectives.bind(name))) for name, w in parts.items()]
    torch.testing.assert_close(gradient(whole), torch.stack(apart).sum(0), atol=1e-5, rtol=1e-4)
    assert score(model, batch).logps.isfinite().all()
