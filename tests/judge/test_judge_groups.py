"""Groups of annotators: found only if people agree within groups but not between; aggregated separately."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers_runs import model_folder, one_thread

from afzal import data
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.judge import groups, labels, validation
from afzal.records import Comparison, Item, Response, preferences

NAMES = ("first", "second")


def rows(n: int, tastes: dict[str, int], right: float = 0.9, seed: int = 0) -> list[Item]:
    """Rows on which every person follows a group's taste, with some noise; each taste is an independent coin."""
    generator, made = np.random.default_rng(seed), []
    for k in range(n):
        likes = generator.integers(2, size=max(tastes.values()) + 1)
        votes = []
        for who, taste in tastes.items():
            said = int(likes[taste]) if generator.random() < right else 1 - int(likes[taste])
            votes.append(Comparison(0, 1, NAMES[said], annotator=who))
        answers = (Response(f"a {k}"), Response(f"b {k}"))
        made.append(Item(f"i{k}", f"prompt {k}", answers, tuple(votes), extra={"lang": ("uz", "en")[k % 2]}))
    return made


TWO = {"ann": 0, "ben": 0, "cat": 0, "dil": 1, "eve": 1}


def test_two_tastes_are_found_and_measured_on_other_prompts():
    split = groups.found(labels.of_items(rows(300, TWO)), resamples=200)
    assert split is not None
    assert len({split.of[n] for n in ("ann", "ben", "cat")}) == len({split.of[n] for n in ("dil", "eve")}) == 1
    assert split.of["ann"] != split.of["dil"]
    assert split.within.value == pytest.approx(0.9**2 + 0.1**2, abs=0.05)
    assert split.between.value == pytest.approx(0.5, abs=0.05)
    assert split.gap.low is not None
    assert split.gap.low > 0.2
    assert "The disagreement has a pattern" in groups.in_words(split)


def test_no_groups_are_found_among_people_of_one_taste():
    one = dict.fromkeys(TWO, 0)
    known = [groups.found(labels.of_items(rows(120, one, 0.75, seed)), resamples=100) for seed in range(40)]
    assert sum(split is not None for split in known) == 0


def test_groups_that_chance_made_do_not_hold_on_other_prompts():
    """Twelve people with twelve tastes: on the prompts used to find them, two groups would always seem to agree."""
    own = {f"p{k}": k for k in range(12)}
    known = [groups.found(labels.of_items(rows(60, own, seed=seed)), resamples=100) for seed in range(10)]
    assert sum(split is not None for split in known) == 0


def test_one_person_is_no_group():
    turned = rows(200, dict.fromkeys(("ann", "ben", "cat"), 0) | {"umi": 1})
    assert groups.found(labels.of_items(turned), resamples=100) is None


def test_agreement_within_and_between_by_hand():
    def item(k, *outcomes):
        votes = tuple(Comparison(0, 1, o, annotator=n) for n, o in zip("abcd", outcomes, strict=True))
        return Item(f"i{k}", f"p{k}", (Response("x"), Response("y")), votes)

    said = labels.of_items([item(0, "first", "first", "second", "second"), item(1, "first", "second", "first", "tie")])
    known = groups.given_groups(said, {"a": "1", "b": "1", "c": "2", "d": "2"}, resamples=10)
    # within: (a,b) and (c,d) agree on the first; (a,b) differ on the second, where d names no winner: 2 of 3
    assert known.within.value == pytest.approx(2 / 3)
    # between: none of four on the first; a with c and not b with c on the second: 1 of 6
    assert known.between.value == pytest.approx(1 / 6)


def test_groups_that_miss_somebody_are_refused():
    said = labels.of_items(rows(5, TWO))
    with pytest.raises(AfzalError, match="'eve' has no group"):
        groups.given_groups(said, dict.fromkeys(("ann", "ben", "cat", "dil"), "x"), resamples=5)
    with pytest.raises(AfzalError, match="annotators are in one group"):
        groups.given_groups(said, dict.fromkeys(TWO, "x"), resamples=5)


def written(path, items: list[Item]) -> str:
    data.write(items, path, "afzal")
    return str(path)


def test_the_command_offers_groups_and_aggregates_them_apart(tmp_path, capsys):
    source, out = written(tmp_path / "v.jsonl", rows(200, TWO)), tmp_path / "o.jsonl"
    assert main(["aggregate", source, "--json", "--resamples", "100"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert set(body["groups"]["of"]) == set(TWO)
    assert any("--group-by found" in line for line in body["findings"])
    assert main(["aggregate", source, "--group-by", "found", "--out", str(out), "--resamples", "100"]) == 0
    assert "extra.group" in capsys.readouterr().out
    kept = data.read(str(out)).items
    assert len(kept) == 400
    assert {item.extra["group"] for item in kept} == {"group 1", "group 2"}
    assert len({item.id for item in kept}) == 400
    sure = [preferences(item)[0] for item in kept]
    assert np.mean([q.p for q in sure]) > 0.9  # together they are a coin flip


def test_groups_from_files_and_fields(tmp_path, capsys):
    source = written(tmp_path / "v.jsonl", rows(60, TWO))
    (tmp_path / "g.csv").write_text("annotator,group\n" + "".join(f"{n},g{t}\n" for n, t in TWO.items()))
    (tmp_path / "g.json").write_text(json.dumps({n: f"g{t}" for n, t in TWO.items()}))
    said = []
    for name in ("g.csv", "g.json"):
        assert main(["aggregate", source, "--json", "--group-by", str(tmp_path / name), "--resamples", "50"]) == 0
        said.append(json.loads(capsys.readouterr().out)["groups"])
    assert said[0] == said[1]
    assert said[0]["of"] == {n: f"g{t}" for n, t in TWO.items()}
    assert main(["aggregate", source, "--json", "--group-by", "lang", "--resamples", "50"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert [row[:3] for row in table["rows"]] == [["en", "30", "30"], ["uz", "30", "30"]]
    assert main(["aggregate", source, "--group-by", "nothing"]) == 2
    (tmp_path / "bad.json").write_text("[1]")
    assert main(["aggregate", source, "--group-by", str(tmp_path / "bad.json")]) == 2


def test_groups_that_were_found_are_trained_on_by_group_dpo(tmp_path):
    source, out, run = written(tmp_path / "v.jsonl", rows(200, TWO)), tmp_path / "o.jsonl", tmp_path / "run"
    given = ["--group-by", "found", "--out", str(out), "--resamples", "50", "--labels", "weighted"]
    assert main(["aggregate", source, *given]) == 0
    told = ["--model", str(model_folder(tmp_path / "model")), "--data", str(out), "--out", str(run), "--device", "cpu"]
    small = ["--max-steps", "2", "--batch-size", "8", "--max-tokens", "32", "--lr", "1e-3", "--sample-prompts", "0"]
    with one_thread():
        assert main(["train", "prefer", "--objective", "group_dpo", "--task", "group", *told, *small]) == 0
    facts = json.loads((run / "run.json").read_text())
    assert {task["name"] for task in facts["data"]["tasks"]} == {"group 1", "group 2"}
    last = [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r.get("kind") == "eval"]
    assert {"tasks/accuracies/0", "tasks/accuracies/1"} <= last[-1].keys()


def test_a_file_of_groups_is_read_with_a_byte_order_mark_and_in_no_other_encoding(tmp_path):
    text = {"g.json": '{"ann": "a", "bob": "b"}', "g.csv": "annotator,group\nann,a\nbob,b\n"}
    for name, content in text.items():
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert groups.read_groups(str(path)) == {"ann": "a", "bob": "b"}
        path.write_bytes(content.encode("utf-16-le"))
        with pytest.raises(AfzalError, match="the file is UTF-16LE, not UTF-8"):
            groups.read_groups(str(path))


def test_an_annotator_in_two_groups_is_refused(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("annotator,group\nann,a\nann,a\nann,b\n")
    with pytest.raises(AfzalError, match="'ann' is in the groups 'a' and 'b'"):
        groups.read_groups(str(path))


def test_the_alternative_annotator_test_of_a_judge_is_over_prompts():
    """Forty pairs of one dialogue are one observation; of forty dialogues, they show that the judge can stand in."""
    votes = tuple(Comparison(0, 1, "first", annotator=name) for name in ("ann", "ben", "cat"))
    alone = rows(40, TWO)
    several = [replace(item, votes=votes) for item in alone]
    together = [replace(item, group="one") for item in several]
    tests = [
        validation.compare_with_people(np.ones(40), labels.of_items(items), resamples=5, seed=0)["alt_test"]
        for items in (several, together)
    ]
    assert tests[0]["0.2"]["passes"]
    assert tests[1] == {}
