"""``afzal check`` and ``afzal convert`` on the command line: exit codes and output."""

import json
from pathlib import Path

import pytest

from afzal import cli
from afzal.data import read
from afzal.quality.thresholds import THRESHOLDS

ROWS = [
    {"prompt": f"Q{n}", "chosen": f" {'x' * (n % 4 + 1)}{n}", "rejected": f" {'x' * (4 - n % 4)}{n}"} for n in range(20)
]


@pytest.fixture
def put(tmp_path):
    def write(rows, name="a.jsonl"):
        path = tmp_path / name
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return path

    return write


def afzal(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def test_sound_data_exits_0_and_says_what_was_understood(put, capsys):
    code, out, err = afzal(capsys, "check", put(ROWS))
    assert (code, err) == (0, "")
    assert "format standard" in out
    for line in ("prompt: prompt", "better: chosen", "worse: rejected", "rows: 20 (20 used)"):
        assert line in out
    assert "\x1b" not in out


def test_major_findings_exit_1(put, capsys):
    code, out, _ = afzal(capsys, "check", put([*ROWS, {"prompt": "Q", "chosen": " ", "rejected": "b"}]))
    assert code == 1
    assert "major dropped_rows: 1 of 21 rows dropped: empty_response 1" in out
    assert "a.jsonl:21" in out


def test_unreadable_data_exits_2_without_a_traceback(put, capsys):
    path = put([*ROWS, '{"prompt": "Q", "chosen": 3, "rejected": "b"}\n'])
    code, out, err = afzal(capsys, "check", path)
    assert (code, out) == (2, "")
    assert f"{path}:21: field 'chosen' is a number (3), not text" in err
    assert "--skip-bad" in err
    assert "Traceback" not in err
    code, out, _ = afzal(capsys, "check", path, "--skip-bad")
    assert code == 1
    assert "wrong_type 1" in out


def test_columns_and_format(put, capsys):
    path = put([{"q": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in ROWS])
    code, out, _ = afzal(capsys, "check", path, "--columns", "prompt=q,chosen=good,rejected=bad")
    assert code == 0
    assert "better: good (given for chosen)" in out
    code, _, err = afzal(capsys, "check", path, "--columns", "prompt")
    assert code == 2
    assert "NAME=FIELD" in err
    code, _, err = afzal(capsys, "check", path, "--format", "nonsense")
    assert code == 2
    assert "unknown format 'nonsense'" in err


def test_json_is_one_object_with_findings(put, capsys):
    code, out, _ = afzal(capsys, "check", put(ROWS), "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["format"], told["rows"], told["kept"]) == ("standard", 20, 20)
    assert {"code", "severity", "count", "total", "message", "ids"} <= told["findings"][0].keys()


def test_what_was_not_looked_for_is_said_with_the_flag_that_asks_for_it(put, capsys):
    path = put(ROWS)
    _, out, _ = afzal(capsys, "check", path)
    assert "not run: overlap (needs a test set): add --against TEST" in out
    assert "not run: suspicious_pairs, ambiguous_pairs (need scores): add --reward MODEL" in out
    assert "near_duplicates: 0 of 20 items" in out
    _, out, _ = afzal(capsys, "check", path, "--against", path)
    assert "not run: overlap" not in out
    many = put([{"prompt": f"Q {n}", "chosen": f" a{n}", "rejected": f" b{n}"} for n in range(2001)], "many.jsonl")
    _, out, _ = afzal(capsys, "check", many)
    assert "not run: near_duplicates, coverage (more than 2,000 items or 4 million characters): add --deep" in out
    told = json.loads(afzal(capsys, "check", many, "--json")[1])["not_run"]
    assert [one["codes"] for one in told] == [
        ["near_duplicates", "coverage"],
        ["overlap"],
        ["suspicious_pairs", "ambiguous_pairs"],
    ]


def test_prompts_of_a_test_set_are_found(put, capsys):
    test = put([{"prompt": "q7 "}, {"prompt": "Another"}], "test.jsonl")
    code, out, _ = afzal(capsys, "check", put(ROWS), "--against", test)
    assert code == 1
    assert "major overlap: 1 of 2 test prompts, 50.0%" in out
    code, _, err = afzal(capsys, "check", put(ROWS), "--against", "nowhere.jsonl")
    assert code == 2
    assert "nowhere.jsonl" in err


def test_scores_come_from_a_reward_model_or_from_a_policy_and_its_reference(put, capsys):
    code, _, err = afzal(capsys, "check", put(ROWS), "--policy", "p")
    assert (code, "policy and reference belong together" in err) == (2, True)


def test_every_finding_has_its_threshold_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {cells[0].strip("| `"): cells[-1].removesuffix(" |") for cells in rows if len(cells) == 3}
    assert told == THRESHOLDS


def test_a_terminal_gets_a_table(put, capsys, monkeypatch):
    path = put(ROWS)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = afzal(capsys, "check", path)
    assert code == 0
    assert "what was seen" in out
    assert "length_bias" in out


def test_convert_writes_reads_back_and_does_not_overwrite(put, capsys, tmp_path):
    path, target = put(ROWS), tmp_path / "out.jsonl"
    code, out, _ = afzal(capsys, "convert", path, target, "--to", "trl")
    assert code == 0
    assert "20 rows as trl" in out
    assert read(target).fingerprint == read(path).fingerprint
    code, _, err = afzal(capsys, "convert", path, target, "--to", "afzal")
    assert code == 2
    assert "--force" in err
    code, _, _ = afzal(capsys, "convert", path, target, "--to", "afzal", "--force")
    assert code == 0
    assert read(target).format == "afzal"


def test_convert_counts_what_does_not_fit(put, capsys, tmp_path):
    path, target = put([*ROWS, {"prompt": "Q", "chosen": " a", "rejected": " b", "p": 0.5}]), tmp_path / "out.jsonl"
    code, _, err = afzal(capsys, "convert", path, target, "--to", "trl")
    assert code == 2
    assert "tie 1" in err
    assert not target.exists()
    code, out, _ = afzal(capsys, "convert", path, target, "--to", "trl", "--skip")
    assert code == 1
    assert "20 rows as trl" in out
    assert "left out: tie 1" in out
