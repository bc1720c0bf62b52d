"""`make people`: the annotators, the stages and their resumption, on the real stories."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from afzal import data as product
from benchmarks.people import __main__ as people
from benchmarks.people import data, page, voting


@pytest.fixture
def stories(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFZAL_SHARED", str(shared / "data"))


def _asked(prompt: str) -> dict:
    def text(value: str) -> list:
        return [{"parts": [{"text": value}]}]

    return {"prompt": text(prompt), "responses": [text("good"), text("bad")]}


def test_annotators_err_on_fifteen_percent_and_one_is_reversed():
    prompts = [f"opening {k}" for k in range(2000)]
    worth = {(p, a): v for p in prompts for a, v in (("good", 1.0), ("bad", -1.0))}
    right = {n: np.mean([voting.outcome(n, _asked(p), worth) == "first" for p in prompts]) for n in voting.NAMES}
    assert right[voting.TURNED] == pytest.approx(voting.NOISE, abs=0.03)
    assert [right[n] for n in voting.NAMES[:2]] == pytest.approx([1 - voting.NOISE] * 2, abs=0.03)


def test_the_share_of_the_clean_gain_is_a_ratio_of_gains_and_none_without_a_gain():
    start = np.arange(40.0)
    assert page._share(start, start + 3, start + 4) == {"value": 0.75, "low": 0.75, "high": 0.75}
    assert page._share(start, start + 3, start) is None


def test_gold_and_held_out_rows_are_nowhere_else(stories, tmp_path: Path):
    data.write(tmp_path, data.PROPER)
    read = {f.stem: {i.prompt for i in product.read(f).items} for f in tmp_path.glob("*.jsonl")}
    assert {name: len(prompts) for name, prompts in read.items()} == {
        "gold": 10, "first": 200, "pool": 487, "clean": 497, "held-out": 107,
    }  # fmt: skip
    assert not read["gold"] & read["pool"]
    assert read["first"] < read["pool"]
    assert not read["held-out"] & read["clean"]


def test_votes_through_the_page_are_the_same_bytes_twice(stories, tmp_path: Path):
    size = data.Size(first=4, gold=2, held_out=1)
    for name in ("a", "b"):
        folder = tmp_path / name
        data.write(folder, size)
        voting.vote(
            folder / "first.jsonl", folder / "gold.jsonl", folder / "page", folder / "votes.jsonl", data.worth()
        )
    votes = [(tmp_path / name / "votes.jsonl").read_bytes() for name in ("a", "b")]
    assert votes[0] == votes[1]
    items = product.read(tmp_path / "a" / "votes.jsonl").items
    assert [len(item.votes) for item in items] == [3] * 6
    assert sum(bool(item.gold) for item in items) == 2


def test_without_the_stories_it_says_so(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setenv("AFZAL_SHARED", str(tmp_path))
    assert people.main([str(tmp_path / "out"), "--quick"]) == 2
    assert "the stories are missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _digests(out: Path) -> dict[str, str]:
    """Digests of everything without a time of day: rows with their sources, votes, answers, weights and the page."""
    kept = [*out.glob("*.jsonl"), *out.glob("page/*"), *out.glob("*/model.safetensors")]
    here = str(out).encode()
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes().replace(here, b"")).hexdigest() for p in kept}


@pytest.mark.slow
def test_a_run_that_is_killed_after_and_within_each_stage_ends_in_the_same_bytes(stories, tmp_path: Path, monkeypatch):
    people.run(tmp_path / "whole", data.QUICK)
    out = tmp_path / "killed"
    made: list[str] = []
    original = people.stages

    class Killed(BaseException):
        pass

    def stopping(folder: Path, size: data.Size) -> list[people.Stage]:
        def cut(stage: people.Stage) -> people.Stage:
            def make(to: Path) -> None:
                stage.make(to)
                if stage.name not in made:  # everything is written, nothing has been renamed yet
                    made.append(stage.name)
                    raise Killed

            return people.Stage(stage.name, make)

        return [cut(stage) for stage in original(folder, size)]

    monkeypatch.setattr(people, "stages", stopping)
    names = [stage.name for stage in original(out, data.QUICK)]
    for _ in names:
        with pytest.raises(Killed):
            people.run(out, data.QUICK)
    people.run(out, data.QUICK)
    assert made == names
    assert _digests(out) == _digests(tmp_path / "whole")
