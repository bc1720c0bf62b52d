"""``afzal judge`` on two runs: answers to held-out prompts are sampled once, kept, and judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_runs import model_folder
from transformers import AutoModelForCausalLM

from afzal import api
from afzal.cli import main
from afzal.judge.summary_text import side, verdict
from afzal.stats.intervals import wilson


def two_models(folder: Path) -> tuple[str, str]:
    """Two folders whose weights differ."""
    ours, theirs = model_folder(folder / "dpo-0.1"), model_folder(folder / "sft")
    model = AutoModelForCausalLM.from_pretrained(ours)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    model.save_pretrained(ours)
    return str(ours), str(theirs)


def prompts(folder: Path, n: int = 6) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {k}"}) + "\n" for k in range(n)))
    return str(path)


def judged(ours: str, theirs: str, asked: str, out: Path, *more: str) -> int:
    words = ["--against", theirs, "--prompts", asked, "--judge", "rule:longest", "--max-new-tokens", "12"]
    return main(["judge", ours, *words, "--out", str(out), "--resamples", "50", *more])


def answers(out: Path) -> dict[str, list[dict]]:
    files = sorted((out / "answers").glob("*/*.jsonl"))
    return {f.stem: [json.loads(line) for line in f.read_text().splitlines()] for f in files}


def test_the_win_rate_matches_counting_by_hand_and_is_mirrored(tmp_path):
    ours, theirs = two_models(tmp_path)
    asked = prompts(tmp_path)
    assert judged(ours, theirs, asked, tmp_path / "a", "--n", "2") == 0
    assert judged(theirs, ours, asked, tmp_path / "b", "--n", "2") == 0
    said = answers(tmp_path / "a")
    assert said == answers(tmp_path / "b")
    assert set(said) == {"dpo-0_1", "sft"}
    mine, yours = ([len(row["completion"]) for row in said[name]] for name in ("dpo-0_1", "sft"))
    assert len(mine) == 12
    points = [(a > b) + (a == b) / 2 for a, b in zip(mine, yours, strict=True)]
    one, two = (json.loads((tmp_path / x / "summary.json").read_text())[0]["models"] for x in "ab")
    assert 0 < sum(points) < 12
    assert (one["ours"], one["theirs"]) == ("dpo-0_1", "sft")
    assert one["win_rate"]["value"] == pytest.approx(sum(points) / 12)
    assert one["win_rate"]["low"] <= one["win_rate"]["value"] <= one["win_rate"]["high"]
    assert two["win_rate"]["value"] == pytest.approx(1 - sum(points) / 12)


def test_the_same_command_samples_nothing_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    ours, theirs = two_models(tmp_path)
    asked, out = prompts(tmp_path), tmp_path / "out"
    assert judged(ours, theirs, asked, out) == 0
    names = ("summary.json", "rows.jsonl", "verdicts.jsonl")
    before = [(out / name).read_bytes() for name in names]
    drawn = []
    from afzal.generate import answers as kept

    really = kept.generate
    monkeypatch.setattr(kept, "generate", lambda config: (drawn.append(config.model), really(config)))
    assert judged(ours, theirs, asked, out) == 0
    assert drawn == []
    assert [(out / name).read_bytes() for name in names] == before
    lost = next((out / "answers").glob("*/sft.jsonl"))
    lost.rename(lost.with_suffix(".part"))  # as after a kill in the middle
    assert judged(ours, theirs, asked, out) == 0
    assert drawn == [theirs]
    assert [(out / name).read_bytes() for name in names] == before
    assert judged(ours, theirs, asked, out, "--seed", "1") == 0
    assert drawn == [theirs, ours, theirs]


def test_prompts_without_a_model_are_refused(tmp_path, capsys):
    file = prompts(tmp_path)
    assert judged(file, file, file, tmp_path / "out") == 2
    assert "no model that answers them" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--n", "1"), ("--temperature", "0"), ("--max-new-tokens", "12"), ("--seed", "0")])
def test_sampling_settings_are_refused_if_nothing_is_sampled(tmp_path, capsys, words):
    """A flag that would be ignored is an error, even if it gives the default."""
    file = prompts(tmp_path)
    assert main(["judge", file, "--judge", "rule:longest", "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert f"{words[0].removeprefix('--').replace('-', '_')}: no answers are sampled" in said
    assert "(--prompts)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.6, 1.0, "better"), (0.1, 0.4, "worse"), (0.4, 0.9, "not told"), (None, None, "not told")],
)
def test_a_win_rate_without_an_interval_distinguishes_nothing(low, high, word):
    rate = {"value": 1.0, "low": low, "high": high}
    models = {"ours": "A", "theirs": "B", "win_rate": rate}
    summary = {"models": models, "prompts": 1, "judge": "j", "no_verdict_share": 0.0}
    assert verdict(summary).startswith(word)
    assert side(rate) == {"better": 1, "worse": -1}.get(word, 0)


def test_a_few_wins_are_not_certain(tmp_path):
    ours, theirs = ([{"prompt": f"Q{k}", "completion": said} for k in range(2)] for said in ("Long.", "S."))
    result = api.judge(ours, against=theirs, judge="rule:longest", out=tmp_path / "a")
    rate = result["judges"][0]["models"]["win_rate"]
    assert (rate["value"], rate["low"]) == (1.0, pytest.approx(wilson(2, 2)[0]))
    assert result.lines[-1].startswith("not told apart")
    card = json.loads((tmp_path / "a" / "judge_card.json").read_text())
    assert card["findings"][0].startswith("Not told apart: ours wins 100.0% [34.2, 100.0] against theirs")
    rows = [{"prompt": f"Q{k}", "chosen": "Long.", "rejected": "S."} for k in range(2)]
    beside = api.judge(rows, judge="rule:longest", out=tmp_path / "b")["judges"][0]["people"]["agreement"]
    assert (beside["value"], beside["low"]) == (1.0, pytest.approx(wilson(2, 2)[0]))


def test_a_judge_without_any_verdict_is_reported_and_proposes_nothing(tmp_path, capsys):
    rows = [{"prompt": "Q", "chosen": "Long.", "rejected": "S."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "mute.jsonl").write_text(json.dumps({"id": "rows.jsonl:1", "judges": {"mute": "garbage"}}) + "\n")
    judge = f"verdicts:{tmp_path / 'mute.jsonl'}:mute"
    assert main(["judge", str(tmp_path / "rows.jsonl"), "--judge", judge, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert told.out.rstrip().endswith("not judged: mute gave no verdict in 1 game")
    assert "next" not in told.err + told.out
