"""``afzal judge`` from rows to verdicts, votes, summary and card; each kind of judge; requirements on one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_runs import model_folder, one_thread
from helpers_scripted_server import scripted

from afzal import data, judging
from afzal.cli import main
from afzal.cli.judge import parse_conditions, unmet
from afzal.errors import AfzalError
from afzal.judge import local, summary, summary_text
from afzal.judge.games import Pair, Ruling, games_of, pairs_of
from afzal.judging import judges
from afzal.records import Comparison, Item, Response
from afzal.tokens import Speaker


def rows(path: Path, n: int = 12, votes: bool = True) -> str:
    """Pairs of two models; the longer answer is ours on two of three rows, and people prefer the answer with 'yes'."""
    items = []
    for k in range(n):
        answers = (f"yes {k}" + " and more" * (k % 3 > 0), f"no {k}" + " and on" * (k % 3 == 0))
        said = [Comparison(0, 1, "first" if k % 4 else "second", annotator=who) for who in ("ali", "dil", "umi")]
        both = tuple(Response(text, name) for text, name in zip(answers, ("ours", "theirs"), strict=True))
        items.append(Item(f"r{k}", f"question {k}", both, tuple(said) if votes else ()))
    data.write(items, path, "afzal")
    return str(path)


def judge(source: str, out: Path, *more: str) -> int:
    return main(["judge", source, "--out", str(out), "--resamples", "50", *more])


def summary_in(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())[0]


def test_a_rule_judges_every_pair_once(tmp_path, capsys):
    source, out = rows(tmp_path / "rows.jsonl"), tmp_path / "out"
    assert judge(source, out, "--judge", "rule:longest") == 0
    said = capsys.readouterr().out
    assert "judge rule:longest: 12 pairs of 12 prompts, 12 games" in said
    assert "ours against theirs: win 66.7, tie 0.0, loss 33.3; win rate 66.7%" in said
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [v["verdict"] for v in verdicts[:3]] == ["second", "first", "first"]
    assert {v["p_first"] for v in verdicts} == {None}
    kept = data.read(str(out / "rows.jsonl")).items
    votes = [v for v in kept[1].votes if v.annotator == "rule:longest"]
    assert [(v.first, v.second, v.outcome) for v in votes] == [(0, 1, "first")]
    assert len(kept[1].votes) == 4  # people's votes stay
    assert {p.name for p in out.iterdir()} >= {"judge_card.html", "judge_card.json", "summary.json"}


def test_one_pair_is_reported_in_the_singular(tmp_path, capsys):
    assert judge(rows(tmp_path / "rows.jsonl", 1), tmp_path / "out", "--judge", "rule:longest") == 0
    said = capsys.readouterr().out
    assert "judge rule:longest: 1 pair of 1 prompt, 1 game\n" in said
    assert "on 1 prompt by rule:longest" in said


def test_longest_and_shortest_are_each_others_opposite(tmp_path):
    source = rows(tmp_path / "rows.jsonl")
    for name in ("longest", "shortest"):
        judge(source, tmp_path / name, "--judge", f"rule:{name}")
    one, two = (summary_in(tmp_path / name)["models"] for name in ("longest", "shortest"))
    assert (one["win"], one["loss"]) == (two["loss"], two["win"])


def test_a_users_own_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taste.py").write_text("def yes(prompt, answer):\n    return answer.startswith('yes')\n")
    assert judge(rows(tmp_path / "rows.jsonl"), tmp_path / "out", "--judge", "taste.py:yes") == 0
    assert summary_in(tmp_path / "out")["models"]["win"] == 12


def test_people_as_a_judge_and_compared_with_one(tmp_path):
    source = rows(tmp_path / "rows.jsonl")
    assert judge(source, tmp_path / "out", "--judge", f"people:{source}") == 0
    seen = summary_in(tmp_path / "out")
    assert (seen["models"]["win"], seen["models"]["loss"]) == (9, 3)
    assert seen["people"]["agreement"]["value"] == 1.0
    assert seen["people"]["minus_ceiling"]["value"] == 0.0


def test_votes_of_another_file_belong_to_the_same_texts(tmp_path, capsys):
    bare, voted = rows(tmp_path / "bare.jsonl", votes=False), rows(tmp_path / "voted.jsonl")
    assert judge(bare, tmp_path / "out", "--judge", "rule:longest", "--people", voted) == 0
    assert summary_in(tmp_path / "out")["people"]["labels"] == 36
    other = tmp_path / "other.jsonl"
    data.write(
        [Item("x", "another question", (Response("a"), Response("b")), (Comparison(0, 1, "first"),))], other, "afzal"
    )
    assert judge(bare, tmp_path / "out2", "--judge", "rule:longest", "--people", str(other)) == 2
    assert "holds no votes on these pairs" in capsys.readouterr().err


def test_answers_of_two_models_side_by_side(tmp_path):
    for name, word in (("sft", "short"), ("dpo", "rather longer")):
        lines = [json.dumps({"prompt": f"q{k % 3}", "completion": f"{word} {k}"}) for k in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    sources = str(tmp_path / "dpo.jsonl"), str(tmp_path / "sft.jsonl")
    assert judge(sources[0], tmp_path / "out", "--against", sources[1], "--judge", "rule:longest") == 0
    seen = summary_in(tmp_path / "out")
    assert (seen["pairs"], seen["prompts"]) == (6, 3)
    assert (seen["models"]["ours"], seen["models"]["theirs"], seen["models"]["win"]) == ("dpo", "sft", 6)


def test_a_jury_votes_under_its_own_names(tmp_path):
    source = rows(tmp_path / "rows.jsonl")
    assert judge(source, tmp_path / "out", "--judge", "rule:longest", "--judge", "rule:shortest") == 0
    names = {v.annotator for item in data.read(str(tmp_path / "out" / "rows.jsonl")).items for v in item.votes}
    assert names == {"ali", "dil", "umi", "rule:longest", "rule:shortest"}


def test_requirements(tmp_path, capsys):
    source = rows(tmp_path / "rows.jsonl")
    assert judge(source, tmp_path / "out", "--judge", "rule:longest", "--require", "no_verdict_share<=0,pairs>=12") == 0
    assert judge(source, tmp_path / "out", "--judge", "rule:longest", "--require", "models.win_rate>=.9") == 1
    assert "models.win_rate is 0.6667, required >= 0.9" in capsys.readouterr().err
    assert judge(source, tmp_path / "out", "--judge", "rule:longest", "--require", "orders.consistent>=.1") == 1
    assert "is not known" in capsys.readouterr().err
    assert judge(source, tmp_path / "out", "--judge", "rule:longest", "--require", "a>b") == 2


def test_conditions():
    assert parse_conditions("a.b>=.8, c<=1e-2") == [("a.b", ">=", 0.8), ("c", "<=", 0.01)]
    with pytest.raises(AfzalError, match="is not a condition"):
        parse_conditions("a>=x")
    assert not unmet({"judge": "j", "c": 0.5}, [("c", "<=", 0.5), ("c", ">=", 0.5)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: http\nurl: http://x/v1\n", "needs model"),
        ("kind: model\n", "needs model"),
        ("kind: rule\nrule: longest\ntemperature: 1\n", "temperature has no effect"),
        ("kind: rule\nrule: regex\n", "pattern belongs to"),
        ("kind: rule\nrule: regex\npattern: '('\n", "not a regular expression"),
        ("kind: http\nmodel: m\nurl: u\nverdict: {choices: {A: first}}\n", "a word for first and one for second"),
        ("kind: http\nmodel: m\nurl: u\nverdict: {json: {}, choices: {A: first, B: second}}\n", "exactly one"),
        ("kind: http\nmodel: m\nurl: u\nverdict: {score: {pattern: 'x'}}\n", "one group"),
        ("kind: http\nmodel: m\nurl: u\nprompts: x\n", "prompts"),
    ],
)
def test_an_invalid_judge_is_refused_with_a_message(tmp_path, capsys, text, said):
    path = tmp_path / "judge.yaml"
    path.write_text(text)
    assert judge(rows(tmp_path / "rows.jsonl"), tmp_path / "out", "--judge", str(path)) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_judge(tmp_path, capsys):
    assert judge(rows(tmp_path / "rows.jsonl"), tmp_path / "out", "--judge", "nobody") == 2
    assert "there is no judge 'nobody'" in capsys.readouterr().err


def test_one_answer_is_nothing_to_judge(tmp_path, capsys):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    assert judge(str(path), tmp_path / "out", "--judge", "rule:longest") == 2
    assert "--against FILE" in capsys.readouterr().err


def test_empty_answers_are_judged(tmp_path):
    items = [Item(str(k), f"q{k}", (Response("", "a"), Response("words", "b"))) for k in range(3)]
    games = games_of(pairs_of(items), "first")
    rulings = judges._pointwise_judge(judges.resolve_judge("rule:longest").settings, items)(games)
    assert [r.outcome for r in rulings] == ["second"] * 3


def test_an_order_only_judge_is_at_a_half_with_every_pair_contradicted():
    items = [Item(str(k), f"q{k}", (Response(f"a{k}", "x"), Response(f"bb{k}", "y"))) for k in range(20)]
    pairs = pairs_of(items)
    games = games_of(pairs, "both")
    rulings = [Ruling("second" if g.swapped else "first") for g in games]
    seen = summary.summary("order", items, pairs, games, rulings, resamples=20)
    assert seen["orders"]["contradictions"] == 20
    assert seen["orders"]["slot_bias"] == 1.0
    assert seen["models"]["win_rate"]["value"] == 0.5
    assert seen["models"]["tie"] == 20


def test_a_model_against_itself_is_at_a_half_at_equal_lengths_too():
    generator = np.random.default_rng(0)
    items, rulings, games = [], [], []
    for k in range(200):
        texts = ("a" * int(generator.integers(1, 40)), "b" * int(generator.integers(1, 40)))
        names = ("x", "y") if k % 2 == 0 else ("y", "x")
        items.append(Item(str(k), f"q{k}", tuple(Response(t, n) for t, n in zip(texts, names, strict=True))))
    pairs = pairs_of(items)
    games = games_of(pairs, "first")
    longer = [len(p.answers[0]) - len(p.answers[1]) for p in pairs]
    rulings = [Ruling("first" if gap > 0 else "second" if gap < 0 else "tie") for gap in longer]
    seen = summary.summary("j", items, pairs, games, rulings, resamples=100)["models"]
    assert "length_controlled" not in seen, "such verdicts say nothing of equal lengths"
    assert seen["lengths_decide"]
    rulings = [Ruling("second" if k % 9 == 0 else ruling.outcome) for k, ruling in enumerate(rulings)]
    seen = summary.summary("j", items, pairs, games, rulings, resamples=100)["models"]
    for figure in (seen["win_rate"], seen["length_controlled"]):
        assert figure["low"] < 0.5 < figure["high"]


def test_a_length_difference_is_taken_between_models_and_not_between_places():
    """The first model is always five characters longer, but not always the first answer; then in reverse."""
    long, short = "a" * 9, "a" * 4
    constant = [(("x", long), ("y", short)), (("y", short), ("x", long))]
    varying = [(("x", long), ("y", short)), (("y", long), ("x", short))]
    for rows, controlled in ((constant, False), (varying, True)):
        items = [Item(str(k), f"q{k}", tuple(Response(t, n) for n, t in rows[k % 2])) for k in range(8)]
        pairs = pairs_of(items)
        rulings = [Ruling("first" if k < 4 else "second") for k in range(8)]
        models = summary.summary("j", items, pairs, games_of(pairs, "first"), rulings, resamples=20)["models"]
        assert ("length_controlled" in models) is controlled
        assert "lengths_decide" not in models


def test_no_verdict_is_counted_and_is_neither_a_tie_nor_a_loss():
    items = [Item(str(k), f"q{k}", (Response(f"a{k}", "x"), Response(f"b{k}", "y"))) for k in range(4)]
    pairs = pairs_of(items)
    games = games_of(pairs, "both")
    rulings = [Ruling("first")] * 6 + [Ruling("first"), Ruling("none", why="the reply was cut")]
    seen = summary.summary("j", items, pairs, games, rulings, resamples=10)
    assert (seen["no_verdict"], seen["why_none"]) == (1, {"the reply was cut": 1})
    assert {k: seen["models"][k] for k in ("win", "tie", "loss", "no_verdict")} == {
        "win": 3,
        "tie": 0,
        "loss": 0,
        "no_verdict": 1,
    }
    assert seen["models"]["win_rate"]["value"] == 1.0


def test_shares_of_the_verdict_words():
    shares = local.shares([np.log(0.2), np.log(0.1), np.log(0.1)], ["first", "second", "tie"])
    assert shares == pytest.approx({"first": 0.5, "second": 0.25, "tie": 0.25})
    assert local.shares([-1e4, -1e4], ["first", "second"])["first"] == pytest.approx(0.5)


def test_a_local_model_judges_by_log_probs(tmp_path, monkeypatch):
    """No reply is parsed, so none is unreadable; the same question in the other order gives the mirrored probability of
    the texts, and the words' probabilities are the model's own."""
    model = model_folder(tmp_path / "model", max_position_embeddings=2048)
    source = rows(tmp_path / "rows.jsonl", 3)
    (tmp_path / "judge.yaml").write_text(
        f"kind: model\nmodel: {model}\nsystem: ''\nprompt: '{{{{ first }}}}/{{{{ second }}}}'\n"
    )
    with one_thread():
        assert judge(source, tmp_path / "out", "--judge", str(tmp_path / "judge.yaml")) == 0
    verdicts = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert len(verdicts) == 6
    assert all(v["verdict"] != "none" and 0 < v["p_first"] < 1 for v in verdicts)
    # a row with swapped answers has the same two games in the other order
    swapped = [Item(i.id, i.prompt, i.responses[::-1]) for i in data.read(source).items]
    data.write(swapped, tmp_path / "swapped.jsonl", "afzal")
    with one_thread():
        judge(str(tmp_path / "swapped.jsonl"), tmp_path / "out2", "--judge", str(tmp_path / "judge.yaml"))
    again = [json.loads(line) for line in (tmp_path / "out2" / "verdicts.jsonl").read_text().splitlines()]
    for k in range(0, 6, 2):
        assert again[k]["p_first"] == pytest.approx(1 - verdicts[k + 1]["p_first"], abs=1e-6)
        assert again[k + 1]["p_first"] == pytest.approx(1 - verdicts[k]["p_first"], abs=1e-6)


def test_log_probs_are_those_of_the_models_own_forward_pass(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from afzal.judge import prompting
    from afzal.train.feed import Layout

    folder = model_folder(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    choices = {"A": "first", "B": "second", "TIE": "tie"}
    how = prompting.PromptSettings("", "{{ prompt }} {{ first }} {{ second }}", prompting.by_choices(choices))
    judge_of = local.by_log_probs(how, choices, model, Speaker(tokenizer, context=256), Layout("unshared", 512))
    (ruling,) = judge_of(games_of([Pair(0, 0, 1, "q", ("one", "two"))], "first"))
    text = "q one two\n"
    logps = []
    for word in choices:
        ids = tokenizer(text)["input_ids"]
        ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        end = tokenizer(f"VERDICT: {word}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            rows_of = model(torch.tensor([[*ids, *end]])).logits[0].log_softmax(-1)
        logps.append(sum(float(rows_of[len(ids) - 1 + k, t]) for k, t in enumerate(end)))
    expected = local.shares(logps, list(choices.values()))
    assert ruling.p_first == pytest.approx(expected["first"] + expected["tie"] / 2, abs=1e-5)


def test_a_question_that_does_not_fit_is_no_verdict(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from afzal.judge import prompting
    from afzal.train.feed import Layout

    folder = model_folder(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    how = prompting.PromptSettings("", "{{ first }}{{ second }}", prompting.by_choices({"A": "first", "B": "second"}))
    speaker, layout = Speaker(tokenizer, context=64), Layout("unshared", 512)
    judge_of = local.by_log_probs(how, {"A": "first", "B": "second"}, model, speaker, layout)
    long, short = Pair(0, 0, 1, "", ("x" * 80, "y")), Pair(1, 0, 1, "", ("x", "y"))
    rulings = judge_of(games_of([long, short], "first"))
    assert [r.outcome == "none" for r in rulings] == [True, False]
    assert "longer than the model's context" in rulings[0].why


def test_a_judge_that_never_gives_a_verdict_has_no_figures_but_is_written(tmp_path):
    items = [Item(str(k), f"q{k}", (Response(f"a{k}", "x"), Response(f"b{k}", "y"))) for k in range(3)]
    pairs = pairs_of(items)
    games = games_of(pairs, "both")
    seen = summary.summary("j", items, pairs, games, [Ruling("none", why="the reply was cut")] * 6, resamples=5)
    assert json.loads(json.dumps(seen, allow_nan=False))["no_verdict_share"] == 1.0
    assert seen["orders"]["slot_bias"] is None
    assert "win_rate" not in seen["models"]
    assert "no verdict 100.0%" in "\n".join(summary_text.lines(seen))


def test_one_judge_without_the_command_line(tmp_path):
    items = data.read(rows(tmp_path / "rows.jsonl")).items
    said = judging.judge_items("rule:longest", items, cache=tmp_path / "replies.sqlite", voted=items, resamples=20)
    assert [(g.pair.item, r.outcome) for g, r in zip(said.games, said.rulings, strict=True)][:2] == [
        (0, "second"),
        (1, "first"),
    ]
    assert {item.votes[-1].annotator for item in said.rows} == {"rule:longest"}
    assert said.summary["models"]["win"] == 8
    assert said.summary["people"]["people"] == 3
    assert {p.name for p in tmp_path.iterdir()} == {"rows.jsonl"}  # a judge without replies writes nothing


def test_a_reward_model_judges_on_the_device_of_all_other_scoring(tmp_path, monkeypatch):
    seen = []

    def source(spec, *, device, **more):
        seen.append(device)
        return lambda prompts, answers, ended=None, columns=None: [float(len(a)) for a in answers]

    monkeypatch.setattr(judges, "pick_device", lambda name: f"device of {name}")
    monkeypatch.setattr(judges, "reward_source", source)
    items, spec = data.read(rows(tmp_path / "rows.jsonl")).items, tmp_path / "judge.yaml"
    spec.write_text(f"kind: reward\nmodel: {model_folder(tmp_path / 'rm')}\n")
    judging.judge_items(str(spec), items, cache=tmp_path / "c.sqlite", resamples=10)
    assert seen == ["device of auto"]


def test_replies_that_could_not_be_read_are_on_the_page(tmp_path):
    """One for each reason first, and only the end of a long one."""
    said = iter(["VERDICT: A or B", "I <b>refuse</b>.", "x" * 5000 + "\nthe end", "VERDICT: A or B"] + ["no"] * 20)
    with scripted() as server:
        server.says = lambda body: next(said)
        spec = tmp_path / "judge.yaml"
        spec.write_text(f"kind: http\nurl: {server.url}\nmodel: m\nconcurrency: 1\n")
        assert judge(rows(tmp_path / "rows.jsonl", votes=False), tmp_path / "out", "--judge", str(spec)) == 0
    texts = json.loads((tmp_path / "out" / "judge_card.json").read_text())["texts"][1:]
    assert [each["text"][-20:] for each in texts] == [
        "VERDICT: A or B",
        "I <b>refuse</b>.",
        "x" * 12 + "\nthe end",
        "VERDICT: A or B",
        "no",
    ]
    assert texts[0]["title"] == "A reply without a verdict: the verdict 'A or B' is not one of A, B, TIE (r0)"
    assert len(texts[2]["text"]) < 2100
    assert "I &lt;b&gt;refuse&lt;/b&gt;." in (tmp_path / "out" / "judge_card.html").read_text()
