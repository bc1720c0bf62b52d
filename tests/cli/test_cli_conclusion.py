"""The last lines of a command: a verdict, then commands that run as written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers_next_steps import parse, proposed_commands

from afzal.cli import main
from afzal.config import PlanConfig
from afzal.terminal.conclusion import conclusion_lines, step

ROWS = [
    {
        "prompt": f"What is {n} and {n}?",
        "chosen": f"That makes {2 * n} indeed.",
        "rejected": f"No idea on {n}{', ask me again' * (n % 2)}",
    }
    for n in range(40)
]
ANSWERS = {"ours": "That makes {}.", "theirs": "I have no idea what {} is.", "third": "No, {}."}
VOTERS = ("ann", "bob", "cid")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("prefs.jsonl", ROWS)
    write("prompts.jsonl", [{"prompt": row["prompt"]} for row in ROWS])
    for name, text in ANSWERS.items():
        write(
            f"{name}.jsonl",
            [{"prompt": f"Q{n}?", "completion": text.format(n) if n % 4 else "Yes."} for n in range(40)],
        )
    write(
        "votes.jsonl",
        [
            {"prompt": f"Q{n}?", "response_a": "Yes.", "response_b": "No!!", "winner": winner, "judge": judge}
            for n in range(12)
            for judge, winner in zip(VOTERS, ("model_a", "model_a", "tie" if n % 3 else "model_b"), strict=True)
        ],
    )
    return tmp_path


def write(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main([*words, "--debug"]) == 0
    return capsys.readouterr().out


def test_names_are_quoted_for_a_shell_and_cannot_forge_a_line():
    assert conclusion_lines("fine", [step("check", "my file.jsonl", why="look")]) == [
        "fine",
        "next (look): afzal check 'my file.jsonl'",
    ]
    assert "\n" not in conclusion_lines("", [step("check", "a\nnext: rm b")])[0]
    with pytest.raises(ValueError, match="at most 3"):
        conclusion_lines("fine", [step("env")] * 4)


@pytest.mark.parametrize(
    ("words", "verdict", "runs"),
    [
        ("check prefs.jsonl", "fit to train on: 40 pairs", ["train dpo --model MODEL --data prefs.jsonl"]),
        (
            "check votes.jsonl",
            "fit to train on",
            ["aggregate votes.jsonl", "train dpo --model MODEL --data votes.jsonl"],
        ),
        ("check ours.jsonl", "as demonstrations: 40 items", ["train sft --model MODEL --data ours.jsonl"]),
        (
            "check prompts.jsonl",
            "40 prompts without answers",
            ["generate --model MODEL --prompts prompts.jsonl --out answers.jsonl"],
        ),
        ("convert prefs.jsonl out.jsonl --to afzal", "40 rows as afzal", ["check out.jsonl"]),
        (
            "judge ours.jsonl --against theirs.jsonl --judge rule:shortest --out judged --resamples 9",
            "better: ours wins 87.5%",
            ["annotate judged/rows.jsonl --out judged/votes"],
        ),
        (
            "judge ours.jsonl third.jsonl --against theirs.jsonl --judge rule:shortest --out judged --resamples 9",
            "written: judged",
            ["annotate judged/rows.jsonl --out judged/votes", "leaderboard judged/rows.jsonl"],
        ),
        (
            "judge prefs.jsonl --judge rule:shortest --out judged --resamples 9",
            "",
            ["annotate judged/rows.jsonl --out judged/votes", "train dpo --model MODEL --data judged/rows.jsonl"],
        ),
        (
            "judge ours.jsonl --against theirs.jsonl --out judged",
            "30 pairs wait for blind votes; 10 more have the same answer twice",
            ["annotate judged/pairs.jsonl --out judged/votes --until-done"],
        ),
        (
            "aggregate votes.jsonl --by majority --resamples 20",
            "12 rows have one opinion by majority; nothing was written",
            ["aggregate votes.jsonl --by majority --resamples 20 --out votes.majority.jsonl"],
        ),
        (
            "aggregate votes.jsonl --out one.jsonl --resamples 20",
            "one.jsonl: 12 rows by mean",
            ["check one.jsonl", "train dpo --model MODEL --data one.jsonl"],
        ),
        ("ask prefs.jsonl --n 4 --by random --votes nobody", "4 questions", ["annotate to_label.jsonl"]),
    ],
)
def test_the_verdict_and_commands_that_run(place, capsys, words: str, verdict: str, runs: list[str]):
    out = said(capsys, *words.split())
    commands = proposed_commands(out)
    assert [" ".join(command) for command in commands] == runs
    assert verdict in out.splitlines()[-1 - len(commands)]
    for command in commands:
        parse(command)
        if command[0] in ("check", "aggregate", "leaderboard", "convert"):
            assert main([*command, "--debug"]) in (0, 1), capsys.readouterr()  # 1: a model that never lost


@pytest.mark.slow
def test_the_leaderboard_as_a_page_keeps_what_was_typed(place, capsys):
    main(["judge", "ours.jsonl", "--against", "theirs.jsonl", "--judge", "rule:longest", "--out", "judged"])
    capsys.readouterr()
    assert main(["leaderboard", "judged/rows.jsonl", "--ties", "half", "--resamples", "9"]) in (0, 1)
    page, agreement = proposed_commands(capsys.readouterr().out)
    assert page == ["leaderboard", "judged/rows.jsonl", "--ties", "half", "--resamples", "9", "--out", "leaderboard"]
    assert main(page) in (0, 1)
    assert list(Path("leaderboard").glob("*.html"))
    parse(agreement)


def test_an_unfit_file_says_why_and_proposes_nothing(place, capsys):
    write("same.jsonl", [row | {"rejected": row["chosen"]} for row in ROWS])
    assert main(["check", "same.jsonl"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("not fit to train on as it is: ")
    assert proposed_commands(out) == []


def test_columns_that_were_named_are_named_again(place, capsys):
    write("mine.jsonl", [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in ROWS])
    columns = "prompt=q,chosen=good,rejected=bad"
    (train,) = proposed_commands(said(capsys, "check", "mine.jsonl", "--columns", columns))
    assert train[-2:] == ["--columns", columns]
    parse(train)


@pytest.mark.parametrize(
    "words",
    [
        "check prefs.jsonl --json",
        "aggregate votes.jsonl --resamples 20 --json",
        "ask prefs.jsonl --n 4 --by random --votes nobody --json",
        "judge ours.jsonl --against theirs.jsonl --judge rule:longest --out judged --resamples 9 --json",
    ],
)
def test_json_output_is_only_json(place, capsys, words: str):
    json.loads(said(capsys, *words.split()))


def test_an_incomplete_word_is_no_error_at_tab(place, capsys, monkeypatch):
    monkeypatch.setenv("_AFZAL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setenv("COMP_WORDS", "afzal train runs/nowhere --re")
    main([])
    assert "".join(capsys.readouterr()) == ""
    monkeypatch.setenv("COMP_WORDS", "afzal train dpo --be")
    with pytest.raises(SystemExit):  # as the shell gets its completions
        main([])
    assert capsys.readouterr().out.split() == ["--beta"]


def test_votes_end_with_their_next_steps(place, capsys, monkeypatch):
    """On stderr: stdout has only the addresses."""
    counts = {"votes": 3, "gold": 0, "skips": 1}
    session = SimpleNamespace(counts=lambda: counts, queue=SimpleNamespace(is_done=lambda: False))
    folder = SimpleNamespace(session=session, task=SimpleNamespace(mode="pair"))
    monkeypatch.setattr("afzal.web.serve.serve", lambda *given: folder)
    assert main(["annotate", "prefs.jsonl", "--headless"]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "prefs.votes: 3 votes, 1 skip; questions remain" in told.err
    assert [" ".join(words) for words in proposed_commands(told.err)] == [
        "aggregate prefs.votes",
        "train dpo --model MODEL --data prefs.votes",
    ]
    counts["gold"] = 3  # they measure the annotators, and train nothing
    main(["annotate", "prefs.jsonl", "--headless"])
    told = capsys.readouterr().err
    assert "3 votes (3 on rows of known truth, which train nothing)" in told
    assert [" ".join(words) for words in proposed_commands(told)] == ["aggregate prefs.votes"]
    counts["votes"] = counts["gold"] = 0
    main(["annotate", "prefs.jsonl", "--headless"])
    assert proposed_commands(capsys.readouterr().err) == []


def test_a_plan_ends_with_the_run_that_it_planned(place, capsys):
    from afzal.cli.plan import _conclude

    planned = lambda **given: _conclude(PlanConfig.model_validate(given))  # noqa: E731
    planned(model="me/model", data="prefs.jsonl", batch_size=16, columns={"prompt": "prompt"})
    (train,) = proposed_commands(capsys.readouterr().out)
    assert " ".join(train) == "train dpo --model me/model --data prefs.jsonl --batch-size 16 --columns prompt=prompt"
    parse(train)
    planned(model="llama-3.1-8b", data="prefs.jsonl", method="sft")
    assert proposed_commands(capsys.readouterr().out) == [["train", "sft", "--model", "MODEL", "--data", "prefs.jsonl"]]
    planned(model="me/model")
    planned(model="me/model", data="prefs.jsonl", method="grpo")  # needs rewards
    assert capsys.readouterr().out == ""


def test_an_upload_prints_only_its_address_and_the_next_step_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr("afzal.hub.push", lambda *given, **named: "https://hub.example/me/model")
    assert main(["push", "runs/dpo", "me/model"]) == 0
    told = capsys.readouterr()
    assert told.out == "https://hub.example/me/model\n"
    (chat,) = proposed_commands(told.err)
    assert chat == ["chat", "me/model", "--alone"]
    parse(chat)


def test_the_demo_ends_with_its_runs(capsys, monkeypatch):
    monkeypatch.setattr("afzal.lab.demo.run", lambda **given: Path("demo/dpo"))
    assert main(["demo"]) == 0
    commands = proposed_commands(capsys.readouterr().out)
    assert commands == [["board", "demo"], ["report", "demo/dpo"]]
    for command in commands:
        parse(command)
