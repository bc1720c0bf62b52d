"""``afzal ladder``: who assists whom, lies that are exact, what is refused, and kills in every stage."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_runs import fingerprint as of_run
from helpers_runs import finished, kill_at, model_folder, pair_file, start_command

from afzal import config, data, judging
from afzal.cli import main
from afzal.config import LadderConfig, Setting
from afzal.config.judging import JudgeConfig
from afzal.errors import AfzalError
from afzal.judging import debates
from afzal.ladder import page, run
from afzal.records import Comparison, Item, Response

DECIDE = '''
import math, re, time


def decide(prompt, first, second, transcript):
    """A judge who goes by what is said to it, and by digits where nothing is said; slow enough to be killed."""
    time.sleep(0.002)
    said = re.search(r"A less B: (-?[0-9.]+)", transcript)
    gap = float(said.group(1)) if said else first.count("e") - second.count("e") + 0.25
    return 1 / (1 + math.exp(-gap))
'''
ASSISTED = {
    "kind": "assisted",
    "judge": {"kind": "function", "function": "decide.py:decide"},
    "assistant": {"kind": "reward", "model": "${reward}"},
}
SMALL = {"batch_size": 8, "max_steps": 6, "epochs": 9, "lr": 1e-3, "eval_fraction": 0, "device": "cpu", "clean": False}


def settings(**changes: Any) -> LadderConfig:
    given: dict[str, Any] = {"model": "model", "data": "pairs.jsonl", "eval_data": "known.jsonl", "judge": ASSISTED}
    return config.build(LadderConfig, [Setting(k, v) for k, v in (given | changes).items()])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("decide.py").write_text(DECIDE)
    return tmp_path


def judge_file(path: str, **assistant: Any) -> str:
    Path(path).write_text(yaml.safe_dump(ASSISTED | {"assistant": assistant}))
    return path


def items() -> list[Item]:
    answers = [("seven", "one"), ("one", "tree"), ("bee", "see"), ("e", "eee")]
    vote = (Comparison(0, 1, "second", annotator="p"),)
    return [Item(str(k), f"q{k}", (Response(a), Response(b)), vote) for k, (a, b) in enumerate(answers)]


def test_a_reward_model_states_its_scores_and_an_exchanged_one_states_them_the_other_way(place, monkeypatch):
    worth = lambda prompts, answers: [float(len(a)) for a in answers]  # noqa: E731
    monkeypatch.setattr(debates, "reward_source", lambda folder, device: worth)
    Path("reward").mkdir()
    files = [judge_file(f"{x}.yaml", kind="reward", model="reward", swapped=x) for x in (False, True)]
    honest, lying = (
        judging.judge_items(f, items(), cache=place / "replies", resamples=20, voted=items()) for f in files
    )
    assert (
        honest.games[0].transcript
        == "[Criticism]\n  Score of answer A: 5.000\n  Score of answer B: 3.000\n  A less B: 2.000"
    )
    for one, other in zip(honest.rulings, lying.rulings, strict=True):
        assert one.p_first == pytest.approx(1 - (other.p_first or 0))  # a lie turns every probability round
    assert honest.rulings[0].outcome == "first"
    told = honest.summary["controls"]["alone"]
    assert told["agreement"] == lying.summary["controls"]["alone"]["agreement"]  # both stand beside the same judge


def test_nobody_as_an_assistant_is_the_judge_alone_without_a_control_beside(place):
    found = judging.judge_items(judge_file("none.yaml", kind="none"), items(), cache=place / "replies", resamples=20)
    assert {game.transcript for game in found.games} == {""}
    assert "controls" not in found.summary
    assert [r.outcome for r in found.rulings[:2]] == ["first", "first"]  # seven has one e more, in both orders


def test_a_level_is_assisted_by_the_one_below_and_the_first_by_nobody():
    made = settings()
    alone, judge = made.alone().assistant, made.assisted("out/level-0", swapped=True).assistant
    assert alone is not None
    assert judge is not None
    assert alone.kind == "none"
    assert (judge.kind, judge.model, judge.swapped) == ("reward", "out/level-0/reward", True)
    by_policy = settings(judge=ASSISTED | {"assistant": {"kind": "model", "model": "${policy}", "max_tokens": 9}})
    critic = by_policy.assisted("out/level-1").assistant
    assert critic is not None
    assert (critic.model, critic.max_tokens, critic.swapped) == ("out/level-1/policy", 9, False)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"judge": ASSISTED | {"assistant": {"kind": "reward", "model": "other"}}}, "no level would learn from the one"),
    (
        {"judge": ASSISTED | {"assistant": {"kind": "reward", "model": "${policy}"}}},
        "no level would learn from the one",
    ),
    ({"judge": ASSISTED | {"assistant": {"kind": "none"}}}, "no level would learn from the one below"),
    ({"judge": ASSISTED | {"assistant": ASSISTED["assistant"] | {"swapped": True}}}, "swapped has no effect"),
    ({"judge": ASSISTED | {"name": "me"}}, "name has no effect"),
    ({"judge": {"kind": "rule", "rule": "longest"}}, "needs a judge of kind assisted, not rule"),
    ({"judge": {"kind": "assisted", "judge": {"kind": "function", "function": "a:b"}}}, "needs judge and assistant"),
    ({"common": {"betta": 1}}, "common: unknown setting 'betta'.*beta"),
    ({"common": {"out": "x"}}, "'out' is set by the ladder itself"),
    ({"train_reward": {"beta": 1}}, "train_reward: unknown setting 'beta'"),
    ({"levels": 0}, "levels"),
    ({"judge": "judge.yaml"}, "judge cannot be 'judge.yaml'; wanted: nested settings"),
    ({"judge": ASSISTED | {"kind": "asisted"}}, "judge: kind cannot be 'asisted'; wanted: one of model, http"),
    ({"judge": ASSISTED | {"ordrs": "both"}}, r"judge: unknown setting 'ordrs' \(did you mean orders"),
    ({"judge": ASSISTED | {"judge": {"function": "a:b"}}}, "judge: judge: the setting 'kind' is missing"),
    ({"judge": ASSISTED | {"assistant": {"kind": "http", "model": "m"}}}, "judge: assistant: kind http needs url"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(AfzalError, match=said):
        settings(**changes)


@pytest.mark.parametrize("kind", ["reward", "none"])
def test_only_an_assistant_is_a_reward_model_or_nobody(kind):
    given = {"kind": "debate", "judge": ASSISTED["judge"], "debater": {"kind": kind, "model": "m"}}
    given["debater"] = given["debater"] if kind == "reward" else {"kind": kind}
    with pytest.raises(AfzalError, match="are for an assistant"):
        config.build(JudgeConfig, [Setting(k, v) for k, v in given.items()])


def test_the_page_says_whether_the_last_level_was_worth_it():
    known = lambda value, low, high: {"value": value, "low": low, "high": high}  # noqa: E731
    lines = [{"name": n, "value": v} for n, v in ((page.ALONE, 0.7), ("level 1", 0.8), ("level 2", 0.81))]
    up, flat, down = known(0.1, 0.05, 0.15), known(0.01, -0.02, 0.04), known(-0.1, -0.2, -0.05)
    say = lambda gains, beside: page._verdict(lines, gains, beside, len(gains))  # noqa: E731
    assert say([up, flat], [up]).endswith(
        "+10.0 [+5.0, +15.0] points. The last level brought nothing measurable: +1.0 [-2.0, +4.0]."
    )
    assert "The last level helped again" in say([up, up], [up])
    assert "The last level made it worse" in say([up, down], [up])
    assert say([flat], []).endswith("Assistants did not help measurably.")
    assert say([down], []).endswith("Assistants made it worse.")
    assert "The control catches it." in page._lie_findings([down])[0]
    assert "The control does not catch it." in page._lie_findings([flat])[0]


def made_world(place: Path) -> None:
    model_folder(place / "model")
    pair_file(place / "pairs.jsonl", 24)
    pair_file(place / "known.jsonl", 40)
    rows = (place / "known.jsonl").read_text().splitlines()[24:]
    (place / "known.jsonl").write_text("\n".join(rows) + "\n")
    (place / "decide.py").write_text(DECIDE)


def files_of(out: Path) -> dict[str, Any]:
    """Everything that must be the same whether or not a ladder was killed."""
    plain = [p for p in out.glob("level-*/*/*") if p.parent.name in ("labels", "measured")]
    plain += [*out.glob("level-*/*.yaml"), *(p for p in out.glob("ladder*") if p.name != "ladder.yaml")]
    found: dict[str, Any] = {str(p.relative_to(out)): p.read_bytes() for p in plain}
    return found | {str(p.parent.relative_to(out)): of_run(p.parent) for p in out.glob("level-*/*/metrics.jsonl")}


KILLED_IN = (
    "level-0/judge.yaml",  # labels
    "level-0/reward/metrics.jsonl",
    "level-0/policy/metrics.jsonl",
    "level-0/policy.yaml",  # measuring
    "level-1/judge.yaml",
    "level-1/reward/run.json",
    "level-1/policy/metrics.jsonl",
    "level-1/policy.yaml",
)


@pytest.mark.slow
def test_killed_in_every_stage_it_resumes_to_the_same_bytes(place):
    made_world(place)
    out, given = place / "ladder", settings().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    given |= {"model": str(place / "model"), "data": str(place / "pairs.jsonl"), "levels": 1, "out": str(out)}
    given |= {"eval_data": str(place / "known.jsonl"), "common": SMALL | {"save_every_steps": 1}, "resamples": 50}
    given["judge"]["judge"]["function"] = f"{place / 'decide.py'}:decide"
    (place / "ladder.yaml").write_text(yaml.safe_dump(given))
    command = ["ladder", str(place / "ladder.yaml")]
    assert finished(start_command(command), 600) == 0
    expected = files_of(out)
    assert len([name for name in expected if name.endswith(("reward", "policy"))]) == 4
    out.rename(place / "whole")
    killed = 0
    for marker in KILLED_IN:
        killed += kill_at(command, out / marker, after=0.02, patience=600) == -signal.SIGKILL
    assert killed == len(KILLED_IN), "a stage was over before the signal came"
    assert finished(start_command(command), 600) == 0
    assert files_of(out) == expected
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.glob("level-*/*/*") if p.is_file()}
    assert finished(start_command([*command, "levels=2"]), 600) == 0  # one level more leaves the others as they are
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before}
    assert json.loads((out / "ladder.json").read_text())["levels"] == 2
    assert finished(start_command([*command, "seed=1"]), 600) == 2


@pytest.mark.slow
def test_the_policy_of_the_level_below_criticises(place, capsys):
    made_world(place)
    judge = {"kind": "assisted", "judge": ASSISTED["judge"], "prompt": "{{ transcript }}"}
    judge["assistant"] = {"kind": "model", "model": "${policy}", "max_tokens": 6}
    given = {"model": "model", "data": "pairs.jsonl", "eval_data": "known.jsonl", "judge": judge, "levels": 1}
    Path("ladder.yaml").write_text(yaml.safe_dump(given | {"common": SMALL, "resamples": 20}))
    assert main(["ladder", "ladder.yaml"]) == 0
    rows = [json.loads(line) for line in Path("ladder/level-1/measured/transcripts.jsonl").read_text().splitlines()]
    assert {row["judge"] for row in rows} == {"level 1", "level 1, lying"}
    said = {(row["id"], tuple(row["order"]), row["judge"]): row["transcript"] for row in rows}
    for (item, order, judge_name), text in said.items():  # what a liar reads is the other order of the same answers
        if judge_name == "level 1":
            assert said[item, order[::-1], "level 1, lying"] == text
    shutil.rmtree("ladder")
    assert "next (" in capsys.readouterr().out


def measured_by_hand(folder: Path, truth: list[Item], right: dict[str, str]) -> Path:
    """A level that is there: verdicts of judges on pairs whose second answer is better, y where right, n where not."""
    for part in (page.LABELS, page.MEASURED):
        (folder / part).mkdir(parents=True)
        said = [{"no_verdict": 0, "outcomes": {"first": 1, "second": 2, "tie": 3, "none": 0}}]
        (folder / part / "summary.json").write_text(json.dumps(said))
    rows = [
        {"id": item.id, "judges": {name: "second" if told[k] == "y" else "first" for name, told in right.items()}}
        for k, item in enumerate(truth)
    ]
    (folder / page.MEASURED / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_page_compares_each_level_with_the_one_below_and_with_the_judge_alone(tmp_path):
    truth = items()
    trained = lambda level, reward, policy: {f"reward model {level}": reward, f"policy {level}": policy}  # noqa: E731
    verdicts = [
        {"level 0": "ynnn", **trained(0, "yynn", "nnnn")},
        {"level 1": "yynn", "level 1, lying": "nnnn", **trained(1, "yyyn", "ynnn")},
        {"level 2": "yyyy", "level 2, lying": "ynny", **trained(2, "yyyy", "yynn")},
    ]
    folders = [measured_by_hand(tmp_path / str(k), truth, said) for k, said in enumerate(verdicts)]
    body = page.report_body(settings(levels=2, resamples=20), folders, truth, truth)
    assert {line["name"]: line["value"] for line in body["lines"]} == {
        "the judge alone": 0.25,
        "level 1": 0.5,
        "level 1, lying": 0.0,
        "level 2": 1.0,
        "level 2, lying": 0.5,
        "reward model 0": 0.5,
        "reward model 1": 0.75,
        "reward model 2": 1.0,
        "policy 0": 0.0,
        "policy 1": 0.25,
        "policy 2": 0.5,
    }
    assert [(d["first"], d["second"], d["value"]) for d in body["differences"]] == [
        ("level 1", "the judge alone", 0.25),
        ("level 2", "level 1", 0.5),
        ("level 2", "the judge alone", 0.75),
        ("level 1, lying", "the judge alone", -0.25),
        ("level 2, lying", "the judge alone", 0.25),
    ]
    assert body["findings"][0].startswith(
        "The judge names the better answer of 0.250 of the pairs alone, 0.500 on level 1, 1.000 on level 2."
    )
    assert body["tables"][0]["rows"] == [[f"level {k}", "1", "2", "3", "0"] for k in range(3)]


def test_the_stages_of_two_levels(tmp_path, monkeypatch):
    """Who labels, who is measured beside known truth, and what each training starts from."""
    seen: list[tuple[Any, ...]] = []

    def judge(rows, judges, out, *, voted, **_):
        names = [yaml.safe_load(Path(j).read_text())["name"] for j in judges]
        seen.append((str(out.relative_to(tmp_path)), names, rows, voted))

    def train(made):
        seen.append((str(Path(made.out).relative_to(tmp_path)), made.model, Path(made.data).parent.name))

    monkeypatch.setattr(run, "run_judges", judge)
    monkeypatch.setattr(run, "train_once", train)
    pairs, truth = items()[:2], items()[2:]
    job = run.Job(settings(out=str(tmp_path), levels=1), pairs, truth, lambda line: None)
    for level in (0, 1):
        run._run_level(job, level)
    trained = lambda k: [f"reward model {k}", f"policy {k}"]  # noqa: E731
    assert seen == [
        ("level-0/labels", ["level 0"], pairs, None),
        ("level-0/reward", "model", "labels"),
        ("level-0/policy", "model", "labels"),
        ("level-0/measured", ["level 0", *trained(0)], truth, truth),
        ("level-1/labels", ["level 1"], pairs, None),
        ("level-1/reward", "model", "labels"),
        ("level-1/policy", str(tmp_path / "level-0/policy"), "labels"),
        ("level-1/measured", ["level 1", "level 1, lying", *trained(1)], truth, truth),
    ]
    lying = yaml.safe_load((tmp_path / "level-1/lying.yaml").read_text())["assistant"]
    assert (lying["model"], lying["swapped"]) == (str(tmp_path / "level-0/reward"), True)
    assert "swapped" not in yaml.safe_load((tmp_path / "level-1/judge.yaml").read_text())["assistant"]


def test_a_folder_takes_one_ladder(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "content_hash", str)
    run._claim_settings(settings(), tmp_path)
    run._claim_settings(settings(levels=3), tmp_path)  # more levels are no other ladder
    with pytest.raises(AfzalError, match="a ladder with other settings"):
        run._claim_settings(settings(seed=1), tmp_path)


def test_verdicts_of_a_judge_are_not_the_truth(place):
    """Half of the pairs have a person's vote next to the judge's, and one has nothing but a known truth."""
    rule = Comparison(0, 1, "first", annotator="gpt")
    rows = [
        replace(item, votes=(*item.votes[k % 2 :], rule), extra={"judged_by": ["gpt"]})
        for k, item in enumerate(items())
    ]
    rows[3] = replace(rows[3], votes=(rule,), gold=(Comparison(0, 1, "tie"),))
    data.write(rows, "known.jsonl", "afzal")
    data.write([Item("new", "another", (Response("a"), Response("b")))], "pairs.jsonl", "afzal")
    lines: list[str] = []
    job = run._job(settings(), lines.append)
    assert [[vote.annotator for vote in item.votes] for item in job.truth] == [["p"], ["p"], [None]]
    assert lines == ["note: 4 verdicts of gpt in known.jsonl are not people's votes"]
    data.write([replace(row, votes=(rule,), gold=()) for row in rows], "known.jsonl", "afzal")
    with pytest.raises(AfzalError, match="no vote says") as refused:
        run._job(settings(), lines.append)
    assert "4 verdicts of gpt are not taken for the truth" in refused.value.why
