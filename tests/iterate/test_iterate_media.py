"""Rounds on prompts with images: the answers, their KL, and files that need nothing from outside the run."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_multimodal import FAMILIES, made, picture, tone
from helpers_ranks import run_ranks
from helpers_rounds import lines
from helpers_runs import finished, start_command
from helpers_scripted_server import scripted, server_file
from test_iterate_ranks import assert_same

import afzal
from afzal import api, data
from afzal.errors import AfzalError
from afzal.generate import Sample, prompt_ids, sample
from afzal.iterate.answers import sequence_kl
from afzal.media import in_row
from afzal.model.speakers import speaker_of
from afzal.records import Item, Message, media_of
from afzal.report.next_steps import next_steps
from afzal.tokens.media import model_inputs

pytest.importorskip("PIL", reason="needs the extra vision")

REWARD = """
def letters(prompt, answer):
    assert isinstance(prompt, str) or prompt, prompt
    return sum(c.isalpha() for c in answer) - sum(c.isdigit() for c in answer)
"""


def written(folder: Path, family: str) -> Path:
    """A model, prompts of which every fourth shows no medium, and a reward."""
    kind = FAMILIES[family][0]
    model, processor = made(family)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "media").mkdir()
    rows = []
    for k in range(12):
        name = f"media/{k}.{'png' if kind == 'image' else 'wav'}"
        (folder / name).write_bytes(picture(k) if kind == "image" else tone(200 + 50 * k))
        shown = [{"type": kind, "path": name}, {"type": "text", "text": f"What is {k}?"}]
        rows.append({"prompt": [{"role": "user", "content": f"Say {k}." if k % 4 == 3 else shown}]})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("media"), "llava")


def settings(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(place / "model"),
        "prompts": str(place / "prompts.jsonl"),
        "reward": f"{place / 'rewards.py'}:letters",
        "objective": "dpo",
        "out": str(out),
        "rounds": 2,
        "n": 3,
        "held_out": 3,
        "held_out_samples": 2,
        "max_tokens": 300,
        "max_new_tokens": 5,
        "require_eos": False,
        "batch_size": 2,
        "lr": 1e-3,
        "warmup": 0,
        "device": "cpu",
        "dtype": "fp32",
        **changes,
    }


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose pictures were deleted afterwards."""
    folder = tmp_path_factory.mktemp("gone")
    shutil.copytree(place, folder / "all")
    out = folder / "run"
    api.iterate(**settings(folder / "all", out, accumulate=True))
    shutil.rmtree(folder / "all" / "media")
    return out


def originals(place: Path) -> set[str]:
    return {m.sha256 for item in data.read(str(place / "prompts.jsonl")).items for m in media_of(item)}


def test_pairs_hold_their_images_without_the_folder_they_came_from(place: Path, run: Path) -> None:
    known, used = originals(place), set()
    for number in ("001", "002"):
        items = data.read(str(run / "rounds" / number / "pairs.jsonl")).items
        assert items
        shown = [{m.sha256 for m in media_of(item)} for item in items]
        assert all(shas <= known and len(shas) <= 1 for shas in shown)
        assert any(shown)
        used |= set().union(*shown)
    assert len(used) > 1


def test_accumulated_rounds_train_on_the_images_of_all_rounds_so_far(run: Path) -> None:
    each = [data.read(str(run / "rounds" / number / "pairs.jsonl")).items for number in ("001", "002")]
    together = data.read(str(run / "rounds" / "002" / "train.jsonl")).items
    assert [item.prompt for item in together] == [item.prompt for items in each for item in items]
    assert any(media_of(item) for item in each[0])
    first = json.loads((run / "rounds" / "002" / "run" / "run.json").read_text())
    assert first["data"]["media"]


def test_the_page_shows_the_images_of_held_out_prompts(run: Path) -> None:
    rows = lines(run / "samples.jsonl")
    shown = {m["file"] for row in rows for m in row.get("media", ())}
    assert shown
    assert (run / "report.html").read_text("utf-8").count("<img src=") == len(shown)
    assert all(row["rendered"].startswith("<image>What is") for row in rows if "media" in row)
    assert {row["stage"] for row in rows} == {"before", "after"}


def test_rounds_measure_reward_and_kl(run: Path) -> None:
    rounds = json.loads((run / "rounds.json").read_text())["rounds"]
    kl = [r["kl"]["mean"] for r in rounds]
    assert kl[0] == 0
    assert all(0 < value < 100 for value in kl[1:])
    evaluations = [row for row in lines(run / "metrics.jsonl") if row["kind"] == "eval"]
    assert {row["n"] for row in evaluations} == {3}  # prompts, with two answers each


def test_the_next_step_is_one_that_shows_images(place: Path, run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    assert facts["data"]["media"] == 9
    facts |= {"status": "finished", "best": "runs/x/rounds/001/run"}
    assert [s.words[0] for s in next_steps("runs/x", facts, [])] == ["report"]
    facts["config"]["held_out_prompts"] = "held-out.jsonl"
    assert [s.words[0] for s in next_steps("runs/x", facts, [])] == ["judge"]


def test_the_same_command_gives_the_same_bytes(place: Path, run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    api.iterate(**settings(place, again, accumulate=True))
    for name in ("samples.jsonl", "scores.jsonl", "pairs.jsonl", "measured.jsonl", "run/model.safetensors"):
        for number in ("001", "002"):
            assert (again / "rounds" / number / name).read_bytes() == (run / "rounds" / number / name).read_bytes()


def test_the_kl_of_an_answer_to_an_image_is_that_of_the_models_own_logits() -> None:
    policy, processor = made("llava", seed=1)
    first, speaker = made("llava")[0], speaker_of(policy, processor)
    image = {"type": "image", "media": in_row("image", picture(5))}
    prompt = (Message("user", ({"type": "text", "text": "Hm "}, image, {"type": "text", "text": " what?"})),)
    (tree,) = speaker.prompt_trees([Item("a", prompt, ())])
    drawn = sample(policy, [tree], eos=[1], n=3)[:3]
    drawn = [Sample(s.prompt_index, s.ids[:6], s.stop, s.logps[:6]) for s in drawn]
    expected = [_kl(policy, first, tree, s.ids) for s in drawn]
    blank = _kl(policy, first, tree, drawn[0].ids, tree.media[0].without_content())
    assert sequence_kl(policy, first, drawn, [tree], budget=4096) == pytest.approx(expected, abs=1e-4)
    assert blank != pytest.approx(expected[0], abs=1e-4)


@torch.no_grad()
def _kl(policy: Any, first: Any, tree: Any, ids: np.ndarray, medium: Any = None) -> float:
    """The sum of the next-token KLs over the answer, from stock forward passes."""
    tokens = torch.tensor([prompt_ids(tree) + ids.tolist()])
    arrays = {k: torch.as_tensor(v) for k, v in model_inputs([medium or tree.media[0]]).items()}
    start, logs = len(tree.prompt) - 1, []
    for model in (policy, first):
        out = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **arrays).logits[0, start:-1]
        logs.append(out.double().log_softmax(-1))
    return float((logs[0].exp() * (logs[0] - logs[1])).sum())


def test_people_label_answers_to_images(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "people"
    given = settings(place, out, reward="people", rounds=1)
    api.iterate(**given)
    folder = out / "rounds" / "001"
    asked = [json.loads(line) for line in (folder / "to_label.jsonl").read_text().splitlines()]
    for row in asked:
        row["votes"] = [{"vote": "comparison", "first": 0, "second": 1, "outcome": "first"}]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    api.iterate(**given, resume=True)
    items = data.read(str(folder / "pairs.jsonl")).items
    assert len(items) == len(asked)
    assert any(media_of(item) for item in items)


def test_a_server_of_kind_vllm_receives_no_images(place: Path, tmp_path: Path) -> None:
    server = server_file(tmp_path / "server.yaml", "http://127.0.0.1:9/v1", kind="vllm", model="{policy}")
    with pytest.raises(AfzalError, match=r"is sent token ids, and prompt \d+ has images or sounds"):
        api.iterate(**settings(place, tmp_path / "out", generator=server))


def test_a_server_that_writes_the_answers_sees_the_images(place: Path, tmp_path: Path) -> None:
    with scripted() as script:
        script.says = lambda body: f"said {body['seed'] % 97} {'x' * (body['seed'] % 5)}"
        server = server_file(tmp_path / "server.yaml", script, model="{policy}")
        api.iterate(**settings(place, tmp_path / "out", generator=server))
    asked = [body["messages"][0]["content"] for body in script.bodies]
    urls = {
        part["image_url"]["url"]
        for content in asked
        for part in content
        if isinstance(part, dict) and "image_url" in part
    }
    sent = {hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest() for url in urls}
    assert sent
    assert sent <= originals(place)
    assert any(isinstance(content, str) for content in asked)
    items = [item for n in ("001", "002") for item in data.read(str(tmp_path / f"out/rounds/{n}/pairs.jsonl")).items]
    assert {m.sha256 for item in items for m in media_of(item)} <= sent
    assert any(media_of(item) for item in items)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_audio", "qwen2_vl"])
def test_other_families_and_a_reward_model_that_reads_media(family: str, tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="needs the extra audio")
    place = written(tmp_path, family)
    prompts = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    (place / "pairs.jsonl").write_text("".join(json.dumps(row | answers) + "\n" for row in prompts))
    short = {"max_tokens": 300, "max_steps": 2, "batch_size": 2, "eval_fraction": 0.0, "device": "cpu"}
    reward = afzal.fit("reward", model=place / "model", data=place / "pairs.jsonl", out=tmp_path / "reward", **short)
    api.iterate(**settings(place, tmp_path / "run", reward=str(reward.path), rounds=1))
    items = data.read(str(tmp_path / "run" / "rounds" / "001" / "pairs.jsonl")).items
    assert any(media_of(item) for item in items)
    scores = {row["reward"] for row in lines(tmp_path / "run" / "rounds" / "001" / "scores.jsonl")}
    assert len(scores) > 3
    start = "<img src=" if FAMILIES[family][0] == "image" else "<audio controls"
    assert start in (tmp_path / "run" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_two_ranks_are_one(place: Path, tmp_path: Path) -> None:
    commands = []
    for name in ("one", "two"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps(settings(place, tmp_path / name, adam_eps=1e-4, max_steps=2, eval_fraction=0.0)))
        commands.append(["iterate", str(file)])
    assert finished(start_command(commands[0]), 300) == 0
    assert run_ranks(commands[1], 2) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")
