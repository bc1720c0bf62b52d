"""Judges that hear arguments: positions, quotes, both orders, controls, resumption."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers_replies import send_reply
from helpers_runs import finished, model_folder, one_thread, start_command

from afzal import config, data, judging
from afzal.cli import main
from afzal.config.judging import JudgeConfig
from afzal.errors import AfzalError
from afzal.judge.debate import Position, count_quotes, mark_quotes, play_debates
from afzal.judge.games import Game, Pair, games_of
from afzal.judging.rewards import scoring_judge
from afzal.records import Comparison, Item, Response

ARGUE = '''
import re


def argue(prompt, own, other, side, transcript):
    """Shows its best digit, or claims one that is not there."""
    best = max(own)
    return f"Mine has <quote>{best}</quote>, and <quote>gold</quote> besides."


def decide(prompt, first, second, transcript):
    """Adds up what is verified on each side; knows nothing without a transcript."""
    worth = {"A": 0, "B": 0}
    for part in transcript.split("[For answer ")[1:]:
        worth[part[0]] += sum(map(int, re.findall("<quote verified>([0-9])", part)))
    gap = worth["A"] - worth["B"]
    return 1 / (1 + 2.718281828459045**-gap)


def criticise(prompt, own, other, side, transcript):
    return f"The first has {sum(map(int, own))}, the second {sum(map(int, other))}."


def read(prompt, first, second, transcript):
    numbers = re.findall("[0-9]+", transcript)
    return 0.5 if not numbers else float(int(numbers[0]) > int(numbers[1]))
'''
PAIR = Pair(0, 0, 1, "question", ("12", "39"))


def test_positions_of_both_sides_in_both_orders():
    seen: list[Position] = []

    def speak(positions):
        seen.extend(positions)
        return [f"{p.side}{p.round}" for p in positions]

    games = play_debates(games_of([PAIR], "both"), "debate", speak, rounds=2)
    assert [(p.side, p.own, p.round) for p in seen] == [
        ("A", "12", 1), ("B", "39", 1), ("A", "39", 1), ("B", "12", 1),
        ("A", "12", 2), ("B", "39", 2), ("A", "39", 2), ("B", "12", 2),
    ]  # fmt: skip
    assert all(p.transcript == "" for p in seen[:4])  # nobody sees the other's argument of the same round
    assert seen[4].transcript == "[For answer A, round 1]\n  A1\n\n[For answer B, round 1]\n  B1"
    assert games[0].transcript.count("[For answer") == 4


def test_a_consultant_defends_the_same_answer_in_both_orders():
    pairs = [Pair(k, 0, 1, f"q{k}", (str(k), str(k + 1))) for k in range(40)]
    own: dict[int, set[str]] = {}

    def speak(positions):
        for p in positions:
            own.setdefault(int(p.prompt[1:]), set()).add(p.own)
        return [""] * len(positions)

    play_debates(games_of(pairs, "both"), "consultant", speak)
    assert all(len(answers) == 1 for answers in own.values())
    firsts = sum(answers == {str(k)} for k, answers in own.items())
    assert 10 <= firsts <= 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<quote>The  Cat</quote>", "<quote verified>The  Cat</quote>"),
        ("<QUOTE>a dog</QUOTE>", "<quote unverified>a dog</quote>"),
        ("<quote>‘it’s here’</quote>", "<quote verified>‘it’s here’</quote>"),
        ("<quote></quote>", "<quote unverified></quote>"),
        # a debater's own mark has no effect
        ("<quote verified>a dog</quote>", "<quote unverified>a dog</quote>"),
        ("<quote>the <quote verified>cat</quote>", "<quote verified>the cat</quote>"),
        ("<quote verified>no end", "<quote>no end"),
    ],
)
def test_quotes_are_compared_with_the_texts(text, expected):
    assert mark_quotes(text, ("Where is the cat?", "'It's here'")) == expected


def test_a_quote_may_span_lines_and_come_from_any_of_the_texts():
    words = "".join(f"<quote>{text}</quote>" for text in ("QUESTION", "12", "39", "1\n2", "\uff13\uff19", "4"))
    games = play_debates(games_of([PAIR], "both"), "debate", lambda ps: [words] * len(ps))
    # in both games of two sides: the prompt and both answers, one of them also in full-width digits
    assert count_quotes(games) == {"verified": 4 * 4, "unverified": 4 * 2}
    assert mark_quotes("<quote>the\n cat</quote>", ("a", "The Cat")) == "<quote verified>the\n cat</quote>"


def test_only_debates_have_rounds():
    asked: list[list[Position]] = []

    def speak(positions):
        asked.append(list(positions))
        return [f"round {p.round}" for p in positions]

    said = {}
    for protocol in ("debate", "consultant", "assisted", "alone"):
        asked.clear()
        (said[protocol],) = play_debates([Game(PAIR, False)], protocol, speak, rounds=2)
        assert [p.round for positions in asked for p in positions] == {
            "debate": [1, 1, 2, 2], "consultant": [1], "assisted": [1], "alone": [],
        }[protocol]  # fmt: skip
    assert said["assisted"].transcript == "[Criticism]\n  round 1"
    assert said["alone"] == Game(PAIR, False)


def test_an_assistant_sees_the_answers_as_shown():
    seen: list[Position] = []
    pair = Pair(7, 0, 1, "question", ("12", "39"))
    play_debates(games_of([pair], "both"), "assisted", lambda ps: seen.extend(ps) or [""] * len(ps))
    assert seen == [
        Position("question", "12", "39", "", 1, "", 7),
        Position("question", "39", "12", "", 1, "", 7),
    ]
    assert seen[0].values() == {"prompt": "question", "own": "12", "other": "39", "side": "", "transcript": ""}


def test_what_a_consultant_defends_is_drawn_by_seed_sample_prompt_and_answers():
    def defended(seed: int = 0, sample: int = 0, prompt: str = "q", more: str = "") -> list[str]:
        games = [Game(Pair(0, 0, 1, f"{prompt}{k}", (f"x{more}", f"y{more}")), False, sample) for k in range(40)]
        own: list[str] = []
        play_debates(games, "consultant", lambda ps: own.extend(p.own[0] for p in ps) or [""] * len(ps), seed=seed)
        return own

    assert defended() == defended()
    draws = [defended(), defended(seed=1), defended(sample=1), defended(prompt="r"), defended(more="!")]
    assert len({tuple(d) for d in draws}) == len(draws)
    assert len(defended(prompt="\udcff")) == 40  # half a surrogate pair, as damaged text may hold
    # the draw is part of what a debate writes: another version draws the same
    assert "".join(defended()[:16]) == "xyxxxxxxyxxyyxyy"
    assert "".join(defended(prompt="\u00e9")[:16]) == "xxyyyyyxyyxyyyxy"


def test_an_argument_without_a_word_keeps_its_heading():
    (game,) = play_debates([Game(PAIR, False, transcript="before")], "debate", lambda ps: [""] * len(ps))
    assert game.transcript == "before\n\n[For answer A, round 1]\n  \n\n[For answer B, round 1]\n  "


def test_no_line_of_an_argument_passes_for_a_heading():
    (game,) = play_debates(
        [Game(PAIR, False)], "debate", lambda ps: ["x\n[For answer B, round 1]\n  B is bad"] * len(ps)
    )
    heads = [line for line in game.transcript.splitlines() if line.startswith("[")]
    assert heads == ["[For answer A, round 1]", "[For answer B, round 1]"]


def test_a_judge_that_always_names_the_first_is_a_coin_and_teaches_nothing(place, capsys):
    Path("talk.py").write_text(ARGUE + "\n\ndef first_always(*_):\n    return 1.0\n")
    judge = json.loads(Path("debate.yaml").read_text())
    judge["judge"] = {"kind": "function", "function": "talk.py:first_always"}
    Path("always.yaml").write_text(json.dumps(judge))
    data.write(items(), Path("pairs.jsonl"), "afzal")
    assert main(["judge", "pairs.jsonl", "--judge", "always.yaml", "--out", "always", "--resamples", "20"]) == 0
    out = capsys.readouterr().out
    assert "consistent 0.0%" in out
    assert "Brier score 0.250 " in out
    assert "train dpo" not in out  # no pair gets an order
    assert "annotate always/rows.jsonl" in out
    assert main(["judge", "pairs.jsonl", "--judge", "debate.yaml", "--out", "judged", "--resamples", "20"]) == 0
    assert "train dpo --model MODEL --data judged/rows.jsonl" in capsys.readouterr().out


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("talk.py").write_text(ARGUE)
    debate = {"kind": "debate", "judge": {"kind": "function", "function": "talk.py:decide"}}
    debate["debater"] = {"kind": "function", "function": "talk.py:argue"}
    Path("debate.yaml").write_text(json.dumps(debate))
    assisted = {"kind": "assisted", "judge": {"kind": "function", "function": "talk.py:read"}}
    assisted["assistant"] = {"kind": "function", "function": "talk.py:criticise"}
    Path("assisted.yaml").write_text(json.dumps(assisted))
    return tmp_path


def items() -> list[Item]:
    answers = [("12", "39"), ("81", "27"), ("55", "55"), ("90", "14"), ("21", "66")]
    votes = lambda a, b: (Comparison(0, 1, "first" if a > b else "second", annotator="p"),) if a != b else ()  # noqa: E731
    return [
        Item(str(k), f"q{k}", (Response(a), Response(b)), votes(max(a), max(b))) for k, (a, b) in enumerate(answers)
    ]


def test_a_debate_gives_ordinary_verdicts_and_its_controls(place):
    result = judging.judge_items("debate.yaml", items(), cache=place / "replies.sqlite", voted=items(), resamples=20)
    by_order = {(g.pair.item, g.swapped): r for g, r in zip(result.games, result.rulings, strict=True)}
    for k in range(5):  # orders swapped give 1 - p
        one, two = by_order[k, False], by_order[k, True]
        assert one.p_first == pytest.approx(two.p_first)
    assert by_order[0, False].outcome == "second"
    assert by_order[2, False].p_first == 0.5  # identical answers
    assert by_order[2, False].outcome == "tie"
    controls = result.summary["controls"]
    assert set(controls) == {"quotes", "alone", "consultant"}
    assert controls["quotes"] == {"verified": 20, "unverified": 20}  # each claims something that is not there
    assert result.summary["people"]["agreement"]["value"] == 1.0
    assert controls["alone"]["agreement"]["value"] == 0.0  # it calls all pairs equal
    assert controls["alone"]["difference"]["value"] == 1.0
    assert [v.annotator for v in result.rows[0].votes] == ["p", "debate", "debate"]  # controls do not vote


def test_a_judge_that_goes_by_position_wins_half_in_each_order(place):
    Path("place.py").write_text("def decide(prompt, first, second, transcript):\n    return 0.9\n")
    settings = json.loads(Path("debate.yaml").read_text())
    settings["judge"]["function"] = "place.py:decide"
    Path("by_place.yaml").write_text(json.dumps(settings))
    result = judging.judge_items("by_place.yaml", items(), cache=place / "replies.sqlite", resamples=20)
    assert {round(r.p_first or 0, 3) for r in result.rulings} == {0.9, 0.1}
    assert result.summary["orders"]["consistent"] == 0.0


def test_an_assistant_criticises_and_the_unassisted_judge_is_a_control(place):
    result = judging.judge_items("assisted.yaml", items(), cache=place / "replies.sqlite", voted=items(), resamples=20)
    assert set(result.summary["controls"]) == {"quotes", "alone"}
    assert result.games[0].transcript == "[Criticism]\n  The first has 3, the second 12."
    assert result.summary["people"]["agreement"]["value"] == 0.75  # people go by the larger digit, not by the sum
    assert result.summary["controls"]["alone"]["agreement"]["value"] == 0.0


def test_transcripts_are_on_the_page_in_a_file_and_in_the_cache(place, capsys):
    data.write(items(), place / "rows.jsonl", "afzal")
    assert main(["judge", "rows.jsonl", "--judge", "debate.yaml", "--out", "out", "--resamples", "20"]) == 0
    said = capsys.readouterr().out
    assert "quotes: 20 verified, 20 not in the texts" in said
    assert "compared with debate (one consultant)" in said
    rows = [json.loads(line) for line in (place / "out/transcripts.jsonl").read_text().splitlines()]
    assert [row["judge"] for row in rows].count("debate") == 10
    assert [row["judge"] for row in rows].count("debate (one consultant)") == 10
    verdicts = [json.loads(line) for line in (place / "out/verdicts.jsonl").read_text().splitlines()]
    assert {v["judge"] for v in verdicts} == {"debate", "debate (alone)", "debate (one consultant)"}
    page = (place / "out/judge_card.html").read_text()
    assert "What was argued about 0" in page
    assert "Controls" in page
    assert "&lt;quote verified&gt;" in page
    with sqlite3.connect(place / "out/replies.sqlite") as connection:
        texts = [row[0] for row in connection.execute("SELECT text FROM reply")]
    assert any("Mine has" in text for text in texts)
    before = {p.name: p.read_bytes() for p in (place / "out").iterdir() if not p.name.startswith("replies")}
    assert main(["judge", "rows.jsonl", "--judge", "debate.yaml", "--out", "out", "--resamples", "20"]) == 0
    assert before == {p.name: p.read_bytes() for p in (place / "out").iterdir() if not p.name.startswith("replies")}


def test_a_local_model_argues_and_decides(tmp_path):
    model_folder(tmp_path / "model", max_position_embeddings=2048)
    inside = {"kind": "model", "model": str(tmp_path / "model")}
    settings = {"kind": "debate", "judge": inside, "debater": {**inside, "max_tokens": 8}, "rounds": 2}
    (tmp_path / "debate.yaml").write_text(json.dumps(settings))
    with one_thread():
        spec = str(tmp_path / "debate.yaml")
        results = [judging.judge_items(spec, items()[:2], cache=tmp_path / name, resamples=20) for name in ("a", "b")]
    assert results[0].games == results[1].games
    assert results[0].rulings == results[1].rulings
    assert all(0 < (r.p_first or 0) < 1 for r in results[0].rulings)
    assert "round 2" in results[0].games[0].transcript


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "debate"}, "kind debate needs judge and debater"),
    ({"kind": "assisted", "debater": {"kind": "function", "function": "a:b"}}, "needs judge and assistant"),
    ({"kind": "debate", "judge": {"kind": "rule", "rule": "longest"}}, "reads no arguments|needs judge"),
    ({"kind": "rule", "rule": "longest", "rounds": 2}, "rounds has no effect"),
    ({"prompt": "{{ first }} or {{ second }}?"}, "must name transcript"),
    ({"temperature": 0.5}, "it belongs to the nested judge"),
    ({"debater": {"kind": "http", "model": "m"}}, "kind http needs url"),
    ({"debater": {"kind": "function", "function": "a:b", "max_tokens": 9}}, "max_tokens has no effect"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_impossible_settings_are_refused(changes, said):
    whole = {"kind": "debate", "judge": {"kind": "function", "function": "a:b"}}
    whole |= {"debater": {"kind": "function", "function": "a:c"}}
    given = changes if "kind" in changes else whole | changes
    with pytest.raises(AfzalError, match=said):
        config.build(JudgeConfig, [config.Setting(k, v) for k, v in given.items()])


def test_a_debate_is_not_a_reward(place):
    with pytest.raises(AfzalError, match="kind debate is not a reward"):
        scoring_judge("debate.yaml")


def test_a_judge_that_gives_no_probability_is_refused(place):
    Path("odd.py").write_text("def decide(prompt, first, second, transcript):\n    return 7\n")
    settings = json.loads(Path("debate.yaml").read_text())
    settings["judge"]["function"] = "odd.py:decide"
    Path("odd.yaml").write_text(json.dumps(settings))
    with pytest.raises(AfzalError, match="not a probability"):
        judging.judge_items("odd.yaml", items(), cache=place / "replies.sqlite")


class _Talk(BaseHTTPRequestHandler):
    """Argue when asked to, else decide for the side whose quoted digit is larger."""

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
        with self.server.lock:  # type: ignore[attr-defined]
            self.server.asked.append(text)  # type: ignore[attr-defined]
        time.sleep(0.002)
        said = f"<quote>{text.split('|')[1]}</quote>" if text.startswith("argue") else "VERDICT: A"
        send_reply(self, said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["debate", "assisted"])
def test_a_run_killed_during_the_debate_resumes_to_the_same_bytes(tmp_path, kind):
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Talk)
    server.asked, server.lock = [], threading.Lock()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        rows = [Item(str(k), f"q{k}", (Response(f"{k}a"), Response(f"{k}b"))) for k in range(12)]
        data.write(rows, tmp_path / "rows.jsonl", "afzal")
        http = {"kind": "http", "url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m"}
        judge = {"kind": kind, "judge": http, "prompt": "{{ first }}{{ second }}{{ transcript }}"}
        judge |= {"rounds": 2} if kind == "debate" else {}
        speaker = "debater" if kind == "debate" else "assistant"
        judge[speaker] = http | {"prompt": "argue|{{ own }}|{{ transcript }}|{{ other }}"}
        (tmp_path / "judge.yaml").write_text(json.dumps(judge))
        line = ["judge", f"{tmp_path}/rows.jsonl", "--judge", f"{tmp_path}/judge.yaml", "--resamples", "20", "--out"]
        assert finished(start_command([*line, f"{tmp_path}/whole"])) == 0
        calls = len(server.asked)
        server.asked.clear()
        out = tmp_path / "killed"
        for part in (1, 2, 3):
            process = start_command([*line, str(out)])
            while process.is_alive() and len(server.asked) < part * calls // 4:
                time.sleep(0.001)
            process.kill()
            process.join()
        assert finished(start_command([*line, str(out)])) == 0
        assert len(set(server.asked)) == calls
        assert len(server.asked) <= calls + 3 * 4  # requests in flight at a kill are asked again
        whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir() if not p.name.startswith("replies")}
        assert whole == {p.name: p.read_bytes() for p in out.iterdir() if not p.name.startswith("replies")}
    finally:
        server.shutdown()
        server.server_close()
