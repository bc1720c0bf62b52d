"""Mixtures: shares by formula, an epoch with exactly these shares, and no prompt on both sides of a split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from afzal import data
from afzal.cli import main
from afzal.data.mixture import Mixture, Source, epoch, mixture_of
from afzal.errors import AfzalError
from afzal.records import prompt_key


def pairs(path: Path, words: list[str], **more: str) -> None:
    rows = [{"prompt": w, "chosen": f" yes {w}", "rejected": " no", **more} for w in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def two(**given: float) -> Mixture:
    return Mixture((Source("a", "a"), Source("b", "b")), **given)


def test_shares_follow_size_temperature_and_cap() -> None:
    sizes = {"a": 900, "b": 100}
    assert two().shares(sizes) == pytest.approx({"a": 0.9, "b": 0.1})
    assert two(temperature=2.0).shares(sizes) == pytest.approx({"a": 0.75, "b": 0.25})  # 30 to 10
    assert two(temperature=1e9).shares(sizes) == pytest.approx({"a": 0.5, "b": 0.5})
    assert two(cap=300.0).shares(sizes) == pytest.approx({"a": 0.75, "b": 0.25})
    weighed = Mixture((Source("a", "a"), Source("b", "b", weight=9.0)))
    assert weighed.shares(sizes) == pytest.approx({"a": 0.5, "b": 0.5})
    stated = Mixture((Source("a", "a"), Source("b", "b"), Source("c", "c", share=0.5)))
    assert stated.shares({**sizes, "c": 3}) == pytest.approx({"c": 0.5, "a": 0.45, "b": 0.05})
    assert stated.shares({"c": 3}) == {"c": 1.0}
    assert stated.shares(sizes) == pytest.approx({"a": 0.9, "b": 0.1})
    with pytest.raises(AfzalError, match="leave nothing for the other tasks"):
        Mixture((Source("a", "a", share=1.0), Source("b", "b"))).shares(sizes)


def test_an_epoch_has_the_size_of_the_data_and_the_shares_of_the_mixture() -> None:
    tasks = ["a"] * 90 + ["b"] * 10
    chosen = epoch(tasks, {"a": 0.25, "b": 0.75}, 3)
    assert len(chosen) == 100
    counts = Counter(tasks[k] for k in chosen)
    assert counts == {"a": 25, "b": 75}
    passes = Counter(k for k in chosen if tasks[k] == "b")
    assert sorted(passes.values()) == [7] * 5 + [8] * 5
    assert len({k for k in chosen if tasks[k] == "a"}) == 25
    assert chosen == epoch(tasks, {"a": 0.25, "b": 0.75}, 3) == sorted(chosen)
    assert chosen != epoch(tasks, {"a": 0.25, "b": 0.75}, 4)
    assert epoch(tasks, {"a": 0.9, "b": 0.1}, 0) == list(range(100))
    alone = epoch(["a"] * 3 + ["b"] * 4, {"a": 1.0, "b": 0.0}, 0)
    assert sorted(Counter(alone).values()) == [2, 2, 3]
    assert set(alone) == {0, 1, 2}


def test_a_mixture_is_read_as_one_source_and_splits_without_leaks(tmp_path: Path) -> None:
    pairs(tmp_path / "one.jsonl", [f"w{k}" for k in range(20)])
    pairs(tmp_path / "two.jsonl", [f"w{k}" for k in range(10, 30)], task="named")
    (tmp_path / "mix.yaml").write_text("sources:\n  - {data: one.jsonl, task: first}\n  - data: two.jsonl\n")
    mixed = data.read(tmp_path / "mix.yaml")
    assert (mixed.rows, len(mixed.items), mixed.format) == (40, 40, "standard")
    assert Counter(i.extra["task"] for i in mixed.items) == {"first": 20, "named": 20}
    assert len({i.id for i in mixed.items}) == 40
    train, held = data.split(mixed.items, 0.3, 0)
    assert held
    assert not {prompt_key(i) for i in train} & {prompt_key(i) for i in held}
    apart = data.read(tmp_path / "one.jsonl")
    assert mixed.fingerprint != apart.fingerprint
    with pytest.raises(AfzalError, match="columns has no effect on a mixture"):
        data.read(tmp_path / "mix.yaml", columns={"chosen": "x"})


def test_check_audits_a_mixture_and_takes_one_as_the_test_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs(tmp_path / "one.jsonl", [f"w{k}" for k in range(20)])
    pairs(tmp_path / "two.jsonl", [f"w{k}" for k in range(10, 30)])
    (tmp_path / "mix.yaml").write_text("sources:\n  - {data: one.jsonl, task: first}\n  - data: two.jsonl\n")
    main(["check", str(tmp_path / "mix.yaml"), "--json"])
    whole = json.loads(capsys.readouterr().out)
    assert (whole["rows"], whole["items"], whole["prompts"]) == (40, 40, 30)
    main(["check", str(tmp_path / "one.jsonl"), "--against", str(tmp_path / "mix.yaml"), "--json"])
    against = json.loads(capsys.readouterr().out)
    overlap = next(finding for finding in against["findings"] if finding["code"] == "overlap")
    assert len(overlap["ids"]) == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources: []", "is not a mixture"),
        ("a: [", "is not a mixture"),
        ("sources: [{task: x}]", "a source has no data"),
        ("sources: [{data: x, tusk: y}]", "'tusk' is not known here"),
        ("sources: [{data: x}]\ntemprature: 2", "'temprature' is not known here"),
        ("sources: [{data: x}]\ntemperature: 0", "not a positive number"),
        ("sources: [{data: x, share: 1.5}]", "more than 1"),
        ("sources: [{data: x, share: .5, weight: 2}]", "states share and weight"),
        ("sources: [{data: x, share: .6}, {data: y, share: .6}]", "sum to more than 1"),
        ("sources: [{data: x, task: t, share: .6}, {data: y, task: t}]", "a share in one source but not in another"),
    ],
)
def test_what_is_wrong_in_a_mixture_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(AfzalError, match=said):
        mixture_of(tmp_path / "mix.yaml")
