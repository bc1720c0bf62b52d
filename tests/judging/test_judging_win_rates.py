"""Several models against one baseline, by judges and people: the table of ``afzal judge A B --against C``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_runs import model_folder, one_thread

from afzal import data
from afzal.cli import main
from afzal.judge import win_rates
from afzal.judge.games import pairs_of
from afzal.judge.people import labels_on
from afzal.records import Comparison, Item, Outcome, Response

ANSWERS = {"sft": ["ss", "s", "sss", "s"], "dpo": ["dddd", "dddd", "ddd", "d"], "base": ["bb", "bb", "bb", "bb"]}
ASKED = [f"question {k}" for k in range(4)]


def files(folder: Path) -> dict[str, str]:
    """A file of answers for each model; the longest answer wins, and equal lengths tie."""
    for name, texts in ANSWERS.items():
        rows = [{"prompt": p, "completion": t} for p, t in zip(ASKED, texts, strict=True)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in ANSWERS}


def votes(folder: Path, said: dict[str, list[tuple[Outcome, Outcome]]]) -> str:
    """Two people on the answers of each model, first, and of base, second."""
    items = []
    for name, of_model in said.items():
        for k, both in enumerate(of_model):
            pair = Response(ANSWERS[name][k]), Response(ANSWERS["base"][k])
            heard = tuple(Comparison(0, 1, o, annotator=who) for o, who in zip(both, ("ali", "dil"), strict=True))
            items.append(Item(f"{name}{k}", ASKED[k], pair, heard))
    path = folder / "votes.jsonl"
    data.write(items, path, "afzal")
    return str(path)


SAID: dict[str, list[tuple[Outcome, Outcome]]] = {
    "dpo": [("first", "first"), ("first", "second"), ("first", "tie"), ("second", "second")],
    "sft": [("tie", "tie"), ("second", "second"), ("second", "second"), ("second", "second")],
}


def run(sources: list[str], other: str, out: Path, *more: str) -> int:
    return main(["judge", *sources, "--against", other, "--out", str(out), "--resamples", "50", *more])


@pytest.fixture
def judged(tmp_path) -> Path:
    of, out = files(tmp_path), tmp_path / "out"
    both = ("--judge", "rule:longest", "--judge", "rule:shortest")
    assert run([of["dpo"], of["sft"]], of["base"], out, *both, "--people", votes(tmp_path, SAID)) == 0
    return out


def value(board: dict, part: str, **about: str) -> float:
    (line,) = [x for x in board[part] if all(x[key] == v for key, v in about.items())]
    return line["value"]


def test_figures_match_counting_by_hand(judged):
    board = json.loads((judged / "table.json").read_text())
    rates = {(x["model"], x["by"]): x["value"] for x in board["lines"]}
    assert rates == {
        ("dpo", "rule:longest"): 3 / 4,  # win, win, win, loss
        ("dpo", "rule:shortest"): 1 / 4,
        ("dpo", "people"): pytest.approx((1 + 0.5 + 0.75 + 0) / 4),
        ("sft", "rule:longest"): 1.5 / 4,  # tie, loss, win, loss
        ("sft", "rule:shortest"): 2.5 / 4,
        ("sft", "people"): 0.5 / 4,
    }
    agreed = {(x["model"], x["first"]): x["value"] for x in board["agreement"]}
    assert agreed == {
        ("dpo", "rule:longest"): 6 / 8,
        ("dpo", "rule:shortest"): 1 / 8,
        ("dpo", "people"): 2 / 4,
        ("sft", "rule:longest"): 6 / 8,
        ("sft", "rule:shortest"): 4 / 8,  # the tie, and the third
        ("sft", "people"): 1.0,
    }
    assert all(x["low"] <= x["value"] <= x["high"] for x in (*board["lines"], *board["agreement"]))


def test_the_table_is_that_of_its_figures_in_every_form(judged, capsys):
    board = json.loads((judged / "table.json").read_text())
    side = board["tables"][0]
    assert side["columns"] == ["", "dpo", "sft"]
    rows = {row[0]: row[1:] for row in side["rows"]}
    assert rows["labels of people"] == ["8", "8"]
    assert [cell.split(" [")[0] for cell in rows["win rate by people"]] == ["56.2%", "12.5%"]
    assert "rule:longest ranks the models as people do: dpo, sft." in board["findings"]
    assert "rule:shortest ranks the models differently from people: sft, dpo." in board["findings"]
    page, text = (judged / "table.html").read_text(), "\n".join(win_rates.lines(board))
    for row in side["rows"]:
        for cell in row:
            assert cell in page
            assert cell in text
    lines = (judged / "table.csv").read_text().splitlines()
    assert lines[0] == "name,model,by,value,low,high,pairs"
    assert len(lines) == 7


def test_rows_of_all_models_are_one_file_for_people(judged):
    items = data.read(str(judged / "rows.jsonl")).items
    assert len({item.id for item in items}) == len(items) == 8
    assert {r.source for item in items for r in item.responses} == {"dpo", "sft", "base"}
    for name in ("dpo", "sft"):
        assert {p.name for p in (judged / name).iterdir()} >= {"summary.json", "rows.jsonl", "verdicts.jsonl"}


def test_one_model_keeps_its_folder_and_has_the_same_column(tmp_path, judged, capsys):
    of = files(tmp_path)
    assert run([of["dpo"]], of["base"], tmp_path / "one", "--judge", "rule:longest") == 0
    assert "dpo against base: win 75.0, tie 0.0, loss 25.0" in capsys.readouterr().out
    board, both = (json.loads((f / "table.json").read_text()) for f in (tmp_path / "one", judged))
    about = {"model": "dpo", "by": "rule:longest"}
    assert value(board, "lines", **about) == value(both, "lines", **about)
    assert board["tables"][0]["rows"][1][0] == "win rate by rule:longest"
    assert board["agreement"] == []


def test_a_model_without_votes_has_none(tmp_path, capsys):
    of, out = files(tmp_path), tmp_path / "out"
    voted = votes(tmp_path, {"dpo": SAID["dpo"]})
    more = ("--judge", "rule:longest", "--people", voted)
    assert run([of["dpo"], of["sft"]], of["base"], out, *more) == 0
    said = capsys.readouterr().out
    assert "There are no votes of people on sft." in said
    board = json.loads((out / "table.json").read_text())
    assert board["tables"][0]["rows"][1] == ["labels of people", "8", "-"]
    assert not [x for x in board["lines"] if (x["model"], x["by"]) == ("sft", "people")]


def test_json_and_requirements_see_every_model(tmp_path, capsys):
    of, out = files(tmp_path), tmp_path / "out"
    more = ("--judge", "rule:longest", "--json", "--require", "models.win_rate>=.5")
    assert run([of["dpo"], of["sft"]], of["base"], out, *more) == 1
    told = capsys.readouterr()
    said = json.loads(told.out)
    assert said["table"] == {
        k: v for k, v in json.loads((out / "table.json").read_text()).items() if k in said["table"]
    }
    assert [s["models"]["ours"] for of_one in said["models"].values() for s in of_one] == ["dpo", "sft"]
    assert "models.win_rate is 0.375, required >= 0.5" in told.err


def test_what_is_refused(tmp_path, capsys):
    of, out = files(tmp_path), tmp_path / "out"
    assert main(["judge", of["dpo"], of["sft"], "--judge", "rule:longest", "--out", str(out)]) == 2
    assert "nothing to compare them with" in capsys.readouterr().err
    assert run([of["dpo"], of["dpo"]], of["base"], out, "--judge", "rule:longest") == 2
    assert "two of the models have the same name" in capsys.readouterr().err
    alike = [tmp_path / "a b.jsonl", tmp_path / "a-b.jsonl"]  # one folder would hold both
    for path in alike:
        path.write_bytes(Path(of["dpo"]).read_bytes())
    assert run([str(path) for path in alike], of["base"], out, "--judge", "rule:longest") == 2
    assert "two of the models have the same name" in capsys.readouterr().err
    elsewhere = tmp_path / "elsewhere.jsonl"
    data.write([Item("x", "another", (Response("a"), Response("b")), (Comparison(0, 1, "first"),))], elsewhere, "afzal")
    more = ("--judge", "rule:longest", "--people", str(elsewhere))
    assert run([of["dpo"], of["sft"]], of["base"], out, *more) == 2
    assert "holds no votes on these pairs" in capsys.readouterr().err


def test_people_count_for_the_named_model_whichever_side_it_is_on():
    first = Item("a", "q", (Response("x", "ours"), Response("y", "theirs")), (Comparison(0, 1, "first"),))
    turned = Item("b", "r", (Response("y", "theirs"), Response("x", "ours")), (Comparison(0, 1, "first"),))
    items = [first, turned]
    pairs = pairs_of(items)
    result = win_rates.people_figures(items, pairs, labels_on(items, pairs))
    assert result is not None
    assert result["win_rate"]["value"] == 0.5
    alone = win_rates.people_figures([first], pairs_of([first]), labels_on([first], pairs_of([first])))
    assert alone is not None
    assert (alone["win_rate"]["value"], alone["agreement"]) == (1.0, None)


def test_a_model_against_itself_answers_with_other_random_numbers(tmp_path, capsys):
    """A win rate needs independent answers; with the same random numbers every pair here would be one text twice."""
    for name in ("ours", "theirs"):
        model_folder(tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {k}"}) + "\n" for k in range(6)))
    line = ["judge", str(tmp_path / "ours"), "--against", str(tmp_path / "theirs"), "--judge", "rule:longest"]
    line += ["--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens", "8", "--out", str(tmp_path / "out")]
    with one_thread():
        assert main(line) == 0
        rows = (tmp_path / "out" / "rows.jsonl").read_bytes()
        assert main([*line, "--json"]) == 0
    assert capsys.readouterr().err.count("its answers are read from") == 2
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == rows
    answers = [[r.turns for r in item.responses] for item in data.read(str(tmp_path / "out" / "rows.jsonl")).items]
    assert len(answers) == 6
    assert all(a != b for a, b in answers)


def test_a_judge_that_follows_the_slot_or_says_nothing_is_reported():
    """Such a judge's win rate of 50% looks like any other."""
    from afzal.judge.games import Ruling, games_of
    from afzal.judge.summary import summary

    items = [Item(str(k), f"q{k}", (Response(f"a{k}", "a"), Response(f"b{k}", "b"))) for k in range(10)]
    pairs = pairs_of(items)
    games = games_of(pairs, "both")
    slot = [Ruling("second" if game.swapped else "first") for game in games]
    mute = [Ruling("first") if game.pair.item else Ruling("none", why="the reply is empty") for game in games]
    summaries = [
        summary(name, items, pairs, games, said, resamples=20) for name, said in (("slot", slot), ("mute", mute))
    ]
    board = win_rates.table([win_rates.Column("a", summaries, None)], "b")
    rows = {row[0]: row[1] for row in board["tables"][0]["rows"]}
    assert rows["both orders agree by slot"] == "0.0%"
    assert rows["games without a verdict by mute"] == "10.0%"
    assert "games without a verdict by slot" not in rows
    assert "slot prefers a slot regardless of the answer, on a." in board["findings"]
