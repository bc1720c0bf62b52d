"""``afzal revise``: what word lists find, which pairs come out, labels in both orders, the report, and resuming."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_replies import send_reply
from helpers_runs import finished, kill_at, model_folder, start_command

from afzal import config, data
from afzal.cli import main
from afzal.config.revise import PrincipleConfig
from afzal.errors import AfzalError
from afzal.judge.games import Ruling
from afzal.principles.labels import combine_rulings
from afzal.principles.run import read_principles, revise
from afzal.principles.word_lists import (
    choose_candidate,
    critique_by_words,
    find_violations,
    is_refusal,
    principle_at_step,
    rejection_reason,
)

PEACE = PrincipleConfig(id="peace", text="No violence.", avoid=("kill*", "sword"))
JOY = PrincipleConfig(id="joy", text="A happy end.", need=("happy", "smiled"))


def test_word_lists_find_whole_words_in_either_case_and_endings_where_a_star_allows_them():
    assert find_violations(PEACE, "He KILLED it. Swords are not a word of the list.") == ["kill*"]
    assert find_violations(PEACE, "a skill, a sword.") == ["sword"]
    assert find_violations(PrincipleConfig(id="x", text="t", avoid=("*5*", "*ing")), "451 rings") == ["*5*"]
    assert find_violations(JOY, "He smiled.") == []
    assert find_violations(JOY, "unhappy") == ["none of happy, smiled"]
    assert critique_by_words(PEACE, "sword, kills") == "It has the words: kill*, sword."
    assert critique_by_words(JOY, "") == "It has none of the words: happy, smiled."
    assert critique_by_words(JOY, "happy") == ""


def test_a_revision_must_break_fewer_words_of_its_principle_and_no_more_of_all():
    both = (PEACE, JOY)
    assert rejection_reason("a sword", "a flower", PEACE, both) == ""
    assert rejection_reason("a sword", " a sword ", PEACE, both) == "unchanged"
    assert rejection_reason("a sword", "  ", PEACE, both) == "empty"
    assert rejection_reason("a sword", "he kills", PEACE, both) == "no better by the word lists"
    assert rejection_reason("a smiled", "he kills, happy", JOY, both) == "worse by the word lists"
    assert rejection_reason("sword, kill, happy", "sad", PEACE, both) == ""  # 2 findings become 1
    assert rejection_reason("sword, happy", "sad", JOY, both) == ""  # 1 and 1
    assert rejection_reason("one", "two", PrincipleConfig(id="free", text="Be kind."), both) == ""


def test_principles_come_in_a_random_order_without_repeats_that_depends_on_the_prompt_and_the_seed_alone():
    many = [PrincipleConfig(id=str(k), text="t") for k in range(5)]
    orders = [[principle_at_step(many, 0, f"prompt {k}", step).id for step in range(10)] for k in range(200)]
    assert all(sorted(o[:5]) == ["0", "1", "2", "3", "4"] and o[5:] == o[:5] for o in orders)
    first = [o[0] for o in orders]
    assert all(20 <= first.count(str(k)) <= 60 for k in range(5))
    assert [principle_at_step(many[::-1], 0, "prompt 3", step).id for step in range(10)] == orders[3]
    assert [principle_at_step(many, 1, f"prompt {k}", 0).id for k in range(200)] != first


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I\N{RIGHT SINGLE QUOTATION MARK}m  sorry, no.", True),
        ("Well, I cannot do that", True),
        ("A tale of a fox. " * 10 + "I cannot", False),
        ("", False),
    ],
)
def test_refusals_begin_near_the_start(answer, refused):
    assert is_refusal(answer, ["i'm sorry", "I cannot"]) is refused


def test_a_label_is_the_mean_over_both_orders_and_kept_away_from_certainty():
    def said(p: float) -> Ruling:
        return Ruling("first", p)

    assert combine_rulings(said(0.9), said(0.5), 0.05)["p"] == pytest.approx(0.7)
    assert combine_rulings(said(0.9), said(0.1), 0.05)["p"] == pytest.approx(0.5)  # goes by the place alone
    assert combine_rulings(said(1.0), said(0.99), 0.05)["p"] == 0.95
    assert combine_rulings(said(0.0), said(0.01), 0.4)["p"] == 0.4
    assert combine_rulings(Ruling("first"), Ruling("second"), 0.0)["p"] == 0.5
    assert combine_rulings(Ruling("none", why="cut"), said(0.9), 0.05) | {"p_shown_second": 0.9} == {
        "p": None,
        "p_shown_first": None,
        "p_shown_second": 0.9,
        "why": "cut",
    }
    assert combine_rulings(None, None, 0.05)["p"] is None


class Writer(ThreadingHTTPServer):
    """A model behind HTTP: its answers hold a sword, its revisions do not; it stops answering at a given request."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.stop_at: str | None = None
        self.stopped = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Writer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        text = body["messages"][-1]["content"]
        if self.server.stop_at is not None and self.server.stop_at in text:
            self.server.stopped.set()
            time.sleep(600)
        if "VERDICT" in text:
            first, second = re.findall(r"<<(.*?)>>", text)
            said = "VERDICT: " + ("A" if "sword" not in first else "B" if "sword" not in second else "TIE")
        elif text.startswith("CRITIQUE"):
            said = f"It names a sword. {body['seed']}"
        elif text.startswith("REVISE"):
            said = f"A flower bloomed {body['seed'] % 100}."
        elif "refused" in text:
            said = "I cannot talk about that."
        else:
            said = f"A sword {body['seed'] % 1000}." if body["seed"] % 3 else f"A tree {body['seed'] % 1000}."
        send_reply(self, said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    running = Writer()
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()


def inputs(folder: Path, n: int = 6, **more: Any) -> list[str]:
    rows = [{"prompt": f"tell tale {k}", "twin": f"tell refused {k}" if k % 2 else None} for k in range(n)]
    rows = [{key: value for key, value in row.items() if value} for row in rows]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    principles = {
        "principles": [
            {"id": "peace", "text": "No weapons.", "avoid": ["sword"], "critique": "which {{ weapon }}?"},
            {"id": "short", "text": "Be short."},
        ],
        "critique_prompt": "CRITIQUE {{ request }} of {{ prompt }}: {{ answer }}",
        "revision_prompt": "REVISE {{ answer }} by {{ critique }} {{ principle }}",
        "label_prompt": "{{ prompt }} {{ principle }} <<{{ first }}>> <<{{ second }}>> VERDICT",
    }
    (folder / "principles.yaml").write_text(yaml.safe_dump(principles | more))
    return ["revise", "--prompts", f"{folder}/prompts.jsonl", "--principles", f"{folder}/principles.yaml"]


def at(server: Writer) -> list[str]:
    return ["--url", f"http://127.0.0.1:{server.server_port}/v1", "--model", "m", "--concurrency", "1"]


def test_revisions_by_a_server_keep_what_made_them_and_twins_are_only_measured(tmp_path, server, capsys):
    line = [*inputs(tmp_path), *at(server), "--rounds", "2", "--out", f"{tmp_path}/out"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "Benign twins: 3 of 3 answers refuse, 0 after revision." in said
    items = list(data.read(f"{tmp_path}/out/pairs.jsonl").items)
    assert [item.prompt for item in items] == [f"tell tale {k}" for k in range(6)]
    for item in items:
        better, worse = (r.turns for r in item.responses)
        assert better.startswith("A flower bloomed")
        assert not worse.startswith("A flower")
        (vote,) = item.votes
        assert (vote.first, vote.second, vote.outcome, vote.axis) == (0, 1, "first", item.extra["principle"])
        steps = item.extra["steps"]
        assert {step["principle"] for step in steps} == {"peace", "short"}
        assert steps[1]["revision_asked"].startswith(f"REVISE {steps[0]['revision']} by {steps[1]['critique']}")
        assert item.extra["model"] == "m"
        assert item.extra["prompts"]["critique"].startswith("CRITIQUE")
    peace = [s for item in items for s in item.extra["steps"] if s["principle"] == "peace"]
    assert all("which {{ weapon }}? of tell tale" in s["critique_asked"] for s in peace)  # data is no template
    report = json.loads((tmp_path / "out/revise.json").read_text())
    assert {row["name"]: row["sampled"] for row in report["lines"]} == {"peace": 6, "short": 6}
    figures = {f["name"]: f for f in report["figures"]}
    assert figures["Refusals, benign twins: answers"]["value"] == 1.0
    assert figures["Refusals, prompts: after revision"]["value"] == 0.0
    assert "flower" not in (tmp_path / "out/revise.html").read_text()  # figures only
    calls = len(server.asked)
    assert calls == 9 + 2 * 2 * 9
    assert main([*line, "--json"]) == 0
    assert len(server.asked) == calls
    assert json.loads(capsys.readouterr().out)["pairs"] == 6


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if not p.name.startswith("replies.")}


def killed(folder: Path, server: Writer, stages: dict[str, str], *more: str) -> None:
    """Kill the command with the last request of each stage on its way; resumed, it leaves what an unkilled one does."""
    line = [*inputs(folder), *at(server), *more, "--out"]
    assert finished(start_command([*line, f"{folder}/whole"])) == 0
    whole = len(server.asked)
    for name, text in stages.items():
        out = folder / name
        server.asked.clear()
        server.stopped.clear()
        server.stop_at = text
        process = start_command([*line, str(out)])
        assert server.stopped.wait(120)
        process.kill()
        process.join()
        server.stop_at = None
        assert f"{name}.jsonl" not in files(out)
        assert "pairs.jsonl" not in files(out)
        assert finished(start_command([*line, str(out)])) == 0
        assert len(server.asked) == whole + 1  # nothing but the lost request is asked again
        assert files(out) == files(folder / "whole")


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_criticises_resumes_to_the_same_bytes(tmp_path, server):
    killed(tmp_path, server, {"critiques-1": "of tell tale 4"})


@pytest.mark.slow
def test_a_run_that_is_killed_in_any_stage_resumes_to_the_same_bytes(tmp_path, server):
    stages = {"answers": "tell tale 5", "critiques-1": "of tell tale 5: A", "revisions-1": "REVISE A "}
    killed(tmp_path, server, stages | {"critiques-2": "of tell tale 5: A flower"}, "--rounds", "2")
    server.asked.clear()
    labels = tmp_path / "label"
    labels.mkdir()
    killed(labels, server, {"answers": "tell tale 2", "labels": "VERDICT"}, "--mode", "label")


def test_labels_of_a_judge_that_sees_the_principle_are_soft_and_keep_both_orders(tmp_path, server):
    line = [*inputs(tmp_path, 20), *at(server), "--mode", "label", "--clamp", "0.1", "--out", f"{tmp_path}/out"]
    assert main(line) == 0
    items = list(data.read(f"{tmp_path}/out/pairs.jsonl").items)
    assert items
    for item in items:
        (vote,) = item.votes
        swords = ["sword" in r.turns for r in item.responses]
        # the judge names the one without a sword; where both have none it goes by the place, which comes to a half
        expected = 0.5 if swords[0] == swords[1] else 0.1 if swords[0] else 0.9
        assert vote.probability == pytest.approx(expected)
        assert "tell tale" in item.extra["prompts"]["label"]
    assert len({vote.probability for item in items for vote in item.votes}) == 3
    report = json.loads((tmp_path / "out/revise.json").read_text())
    figures = {f["name"]: f["value"] for f in report["figures"]}
    assert figures["Share of labels that agree with the principle's word lists"] == 1.0


def test_a_local_model_revises_by_word_lists_alone_and_again_to_the_same_bytes(tmp_path):
    model = model_folder(tmp_path / "model")
    lists = [{"id": "no-a", "text": "No a.", "avoid": ["a*", "e*", "0*", "1*"]}]
    words = {"principles": lists, "critique_prompt": "", "revision_prompt": "{{ prompt }}"}
    inputs(tmp_path, 8, **words)
    made = config.ReviseConfig(
        model=str(model),
        prompts=f"{tmp_path}/prompts.jsonl",
        principles=f"{tmp_path}/principles.yaml",
        out=f"{tmp_path}/one",
        candidates=3,
        max_new_tokens=12,
    )
    body = revise(made)
    revise(made.model_copy(update={"out": f"{tmp_path}/two", "batch_size": 5}))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    rows = [json.loads(x) for x in (tmp_path / "one/revisions-1.jsonl").read_text().splitlines()]
    assert {row["why"] for row in rows} <= {"", "follows the principle", "no better by the word lists", "empty"}
    taken = [row for row in rows if not row["why"]]
    assert taken
    assert all(len(row["broken_after"]) < len(row["broken_before"]) for row in taken)
    own = [row for row in rows if not row["id"].endswith("twin")]
    assert body["pairs"] == sum(not row["why"] for row in own)


def test_a_local_judge_labels_by_log_probs_and_a_swapped_row_gives_the_mirrored_label(tmp_path):
    model = model_folder(tmp_path / "model", max_position_embeddings=512)
    inputs(tmp_path)
    pairs = [("red", "blue"), ("blue", "red")]
    rows = [{"prompt": "which?", "chosen": a, "rejected": b} for a, b in pairs]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    principles = {"principles": [{"id": "one", "text": "Be red."}]}
    (tmp_path / "principles.yaml").write_text(yaml.safe_dump(principles))
    where = {"prompts": f"{tmp_path}/prompts.jsonl", "principles": f"{tmp_path}/principles.yaml"}
    revise(
        config.ReviseConfig.model_validate({"mode": "label", "model": str(model), "out": f"{tmp_path}/out", **where})
    )
    one, two = (next(v.probability for v in item.votes) for item in data.read(f"{tmp_path}/out/pairs.jsonl").items)
    assert one != 0.5
    assert one == pytest.approx(1 - two, abs=1e-6)


def test_what_cannot_be_is_refused(tmp_path):
    inputs(tmp_path)
    where = {"prompts": f"{tmp_path}/prompts.jsonl", "principles": f"{tmp_path}/principles.yaml"}
    for wrong, word in (
        ({"rounds": 2, "mode": "label"}, "rounds"),
        ({"clamp": 0.1}, "clamp"),
        ({"candidates": 2, "temperature": 0.0}, "candidates"),
        ({"concurrency": 2}, "concurrency"),
        ({"mode": "label", "temperature": 0.0}, "temperature 0"),
        ({"mode": "label", "match": "m:f", "match_within": 1.0}, "match has no effect"),
        ({"match": "m:f"}, "match needs match_within"),
        ({"match_within": 1.0}, "match_within has no effect"),
        ({"url": "http://x/v1", "batch_size": 3}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=word):
            config.ReviseConfig.model_validate({"model": "m", "out": "o", **where, **wrong})
    bodies: tuple[tuple[dict[str, Any], str], ...] = (
        ({"principles": []}, "wanted: a list of principles"),
        ({"principles": [{"id": "a"}]}, "principles: principle 1: the setting 'text' is missing"),
        (
            {"principles": [{"id": "a", "text": "t", "avoids": ["x"]}]},
            r"principle 1: unknown setting 'avoids' \(did you mean avoid",
        ),
        ({"principles": [{"id": "a", "txt": "t"}]}, r"principle 1: unknown setting 'txt' \(did you mean text"),
        ({"principles": ["No violence."]}, r"principle 1: wanted: nested settings, such as \{id: peace"),
        ({"principles": [{"id": 1, "text": "t"}]}, "principle 1: id cannot be 1; wanted: text, in quotes"),
        ({"principles": [{"id": "a", "text": ""}]}, "principle 1: text is empty"),
        (
            {"principles": [{"id": "a", "text": "t", "avoid": "kill"}]},
            r"avoid cannot be 'kill'; wanted: a list of words",
        ),
        (
            {"principles": [{"id": "a", "text": "t", "need": [False]}]},
            "need cannot hold false; wanted: text, in quotes",
        ),
        ({"critique_prompt": "{{ weapon }}"}, "critique_prompt does not render"),
        ({"label_prompt": "{{ answer }}"}, "label_prompt does not render"),
        ({"critique_prompt": ""}, "no word lists"),
        ({"principles": [{"id": "a", "text": "t"}, {"id": "a", "text": "u"}]}, "two principles"),
        ({"principles": [{"id": "a", "text": "t", "avoid": ["..."]}]}, "without a letter"),
    )
    for body, word in bodies:
        inputs(tmp_path, **body)
        with pytest.raises(AfzalError, match=word):
            read_principles(where["principles"])


def test_a_folder_of_another_run_is_refused(tmp_path, server):
    line = [*inputs(tmp_path), *at(server), "--out", f"{tmp_path}/out"]
    assert main(line) == 0
    assert main([*line, "--seed", "1"]) == 2
    assert main([*line[:-1], str(tmp_path)]) == 2
    assert main([*line, "--attempts", "3"]) == 0  # what decides no text may change


def test_another_judge_is_another_run(tmp_path, server):
    judge = tmp_path / "judge.yaml"
    address = f"http://127.0.0.1:{server.server_port}/v1"
    judge.write_text(yaml.safe_dump({"kind": "http", "url": address, "model": "strict"}))
    line = [*inputs(tmp_path), *at(server), "--mode", "label", "--judge", str(judge), "--out", f"{tmp_path}/out"]
    assert main(line) == 0
    votes = [v for item in data.read(f"{tmp_path}/out/pairs.jsonl").items for v in item.votes]
    assert {vote.annotator for vote in votes} == {"judge"}
    assert {body["model"] for body in server.asked if "VERDICT" in body["messages"][-1]["content"]} == {"strict"}
    assert not [body for body in server.asked if "refused" in body["messages"][-1]["content"]]  # twins are left out
    judge.write_text(yaml.safe_dump({"kind": "http", "url": address, "model": "mild"}))
    assert main(line) == 2
    judge.write_text(yaml.safe_dump({"kind": "rule", "rule": "longest"}))
    assert main([*line[:-1], f"{tmp_path}/other"]) == 2


def test_of_matched_candidates_the_nearest_in_score_is_taken_and_none_from_further_away():
    def taken(gaps, within=1.0, texts=("a sword", "a tree", "a rose", "a cat")):
        return choose_candidate("a sword here", texts, PEACE, (PEACE,), gaps, within)

    assert taken([0.0, 0.5, -0.25, 3.0]) == ("a rose", "", -0.25)  # the sword is nearest, and breaks the principle
    assert taken([0.0, 0.5, 3.0, -0.75]) == ("a tree", "", 0.5)
    assert taken([3.0, 1.5, -1.25, 3.0]) == ("a rose", "another score", -1.25)
    assert taken([0.0, 1.5, -1.25, 3.0]) == ("a sword", "no better by the word lists", 0.0)
    assert taken([None, None, None, None], None) == ("a tree", "", None)  # without a score the first of equals
    assert taken([None, 0.5, None, 0.0], texts=(" ", "a tree", "", "a cat")) == ("a cat", "", 0.0)
    assert taken([0.0], texts=("",)) == ("", "empty", 0.0)


def test_matched_pairs_differ_in_the_principle_and_not_in_the_score(tmp_path):
    model = model_folder(tmp_path / "model")
    lists = [{"id": "no-a", "text": "No a.", "avoid": ["a*", "e*", "0*", "1*"]}]
    inputs(tmp_path, 40, principles=lists, critique_prompt="", revision_prompt="{{ prompt }}")
    (tmp_path / "scores.py").write_text("def letters(prompt, answer):\n    return sum(map(str.isalpha, answer))\n")
    where = {"prompts": f"{tmp_path}/prompts.jsonl", "principles": f"{tmp_path}/principles.yaml", "model": str(model)}
    given = {**where, "candidates": 6, "max_new_tokens": 12, "match": f"{tmp_path}/scores.py:letters"}
    bodies = {}
    for within in (0.0, 1e9):
        out = tmp_path / f"within-{within:g}"
        bodies[within] = revise(config.ReviseConfig.model_validate(given | {"out": str(out), "match_within": within}))
        for item in data.read(f"{out}/pairs.jsonl").items:
            revision, answer = (sum(map(str.isalpha, str(r.turns))) for r in item.responses)
            assert abs(revision - answer) <= within
    assert 0 < bodies[0.0]["pairs"] < bodies[1e9]["pairs"]
    (row,) = [f for f in bodies[0.0]["figures"] if f["name"] == "Matched score, revision less answer"]
    assert row["value"] == 0.0
    steps = dict(bodies[0.0]["tables"][0]["rows"])
    assert int(steps["another score"]) > 0
    (tmp_path / "scores.py").write_text("def letters(prompt, answer):\n    return len(answer)\n")
    with pytest.raises(AfzalError, match="other settings"):
        revise(config.ReviseConfig.model_validate(given | {"out": f"{tmp_path}/within-0", "match_within": 0.0}))


@pytest.mark.slow
def test_matched_revisions_of_a_local_model_that_is_killed_resume_to_the_same_bytes(tmp_path):
    model = model_folder(tmp_path / "model")
    lists = [{"id": "no-a", "text": "No a.", "avoid": ["a*", "e*", "0*", "1*"]}]
    line = inputs(tmp_path, 300, principles=lists, critique_prompt="", revision_prompt="{{ prompt }}")
    (tmp_path / "scores.py").write_text("def letters(prompt, answer):\n    return sum(map(str.isalpha, answer))\n")
    line += ["--model", str(model), "--candidates", "6", "--max-new-tokens", "12", "--rounds", "2"]
    line += ["--match", f"{tmp_path}/scores.py:letters", "--match-within", "2", "--out"]
    assert finished(start_command([*line, f"{tmp_path}/whole"])) == 0
    out, killed = tmp_path / "killed", set()
    for stage in ("revise-settings.json", "answers.jsonl", "critiques-1.jsonl", "revisions-1.jsonl"):
        if kill_at([*line, str(out)], out / stage) != 0:
            killed.add(len(list(out.iterdir())))
    assert len(killed) > 1
    assert finished(start_command([*line, str(out)])) == 0
    assert files(out) == files(tmp_path / "whole")
