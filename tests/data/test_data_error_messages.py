"""Messages about unreadable rows and files: they use the file's own field names and its true type."""

import bz2
import gzip
import io
import json

import pytest

from afzal.data import read
from afzal.errors import AfzalError

VOTES = [{"q": f"What is {n}?", "x": "yes", "y": "no", "pick": "AB"[n % 2]} for n in range(9)]
COLUMNS = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "pick"}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def error(path, data, **kwargs):
    path.write_bytes(data)
    with pytest.raises(AfzalError) as said:
        read(path, **kwargs)
    return said.value


def changed(rows, at, **fields):
    return [{**row, **fields} if n in at else row for n, row in enumerate(rows)]


@pytest.mark.parametrize("at", [{4}, set(range(9))])
def test_a_vote_under_another_name_is_reported_by_the_name_in_the_file(tmp_path, at):
    said = error(tmp_path / "a.jsonl", lines(changed(VOTES, at, pick="maybe")), columns=COLUMNS)
    assert said.what == "field 'pick' (given for winner) is 'maybe', not one of a, b, tie or both_bad"
    assert said.where == f"{tmp_path}/a.jsonl:{min(at) + 1}"
    number = error(tmp_path / "a.jsonl", lines(changed(VOTES, {4}, pick=7)), columns=COLUMNS)
    assert number.what.startswith("field 'pick' (given for winner) is '7', not one of")
    assert number.where == f"{tmp_path}/a.jsonl:5"


def test_other_fields_under_other_names_are_reported_by_the_names_in_the_file(tmp_path):
    columns = {"prompt": "q", "chosen": "a.good", "rejected": "bad"}
    rows = [{"q": "Q", "a": {"good": "yes"}, "bad": "no"} for _ in range(4)]
    said = error(tmp_path / "a.jsonl", lines(changed(rows, {2}, a={"good": 3})), columns=columns)
    assert (said.what, said.where) == (
        "field 'a.good' (given for chosen) is a number (3), not text",
        f"{tmp_path}/a.jsonl:3",
    )
    inside = changed(rows, {2}, a={"good": [{"role": "user"}]})
    assert "a.good" in error(tmp_path / "a.jsonl", lines(inside), columns=columns).what
    unfit = error(tmp_path / "a.jsonl", lines([{"question": "Q", "best": "a"}]), columns={"prompt": "question"})
    assert "the first row's fields: best, prompt (question);" in unfit.why


def test_a_row_without_the_vote_names_the_vote_of_the_other_rows(tmp_path):
    rows = [{"prompt": f"{n}?", "response_1": "a", "response_2": "b", "preference": "1"} for n in range(5)]
    for missing in ("preference", "response_2"):
        broken = [{k: v for k, v in row.items() if k != missing or n != 3} for n, row in enumerate(rows)]
        said = error(tmp_path / "a.jsonl", lines(broken))
        assert (said.what, said.where) == (f"field '{missing}' is missing", f"{tmp_path}/a.jsonl:4")
    two = error(tmp_path / "a.jsonl", lines(changed(rows, {3}, label="B")))
    assert two.what == "field 'label' is 'B', but 'preference' is '1': one row states one vote"


def test_the_notes_name_the_columns_of_the_file(tmp_path):
    rows = [{"question": f"{n}?", "answer_1": "a", "answer_2": "b", "label": "1"} for n in range(5)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert read(tmp_path / "a.jsonl").notes == [
        "prompt: question",
        "A: answer_1",
        "B: answer_2",
        "vote: label (1, 2, tie or both_bad); rows on the same answers are one item",
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(VOTES))
    assert read(tmp_path / "a.jsonl", columns=COLUMNS).notes[3].startswith("vote: pick (given for winner) (a, b, tie")


def test_votes_of_unknown_words_are_not_called_a_field_that_nobody_reads(tmp_path):
    rows = [{"prompt": f"{n}?", "response_a": "a", "response_b": "b", "label": "maybe"} for n in range(5)]
    said = error(tmp_path / "a.jsonl", lines(rows))
    assert said.what == "field 'label' is 'maybe', not one of a, b, tie or both_bad"
    assert said.remedy.endswith("or, if the votes do not matter, --format prompts")
    assert len(read(tmp_path / "a.jsonl", format="prompts").items) == 5


def test_of_several_fields_that_may_hold_a_vote_columns_names_the_one(tmp_path):
    rows = [{"prompt": f"{n}?", "response_a": "a", "response_b": "b", "label": "geo", "choice": "B"} for n in range(5)]
    said = error(tmp_path / "a.jsonl", lines(rows), columns={"winner": "choice"})
    assert said.what.startswith("field 'label' may change what the rows mean")
    items = read(tmp_path / "a.jsonl", columns={"winner": "choice"}, format="votes").items
    assert [item.votes[0].outcome for item in items] == ["second"] * 5


# --- files whose names are wrong about their type --------------------------------------------------------------------


def parquet(rows):
    pyarrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files.write_table(pyarrow.Table.from_pylist(rows), made := io.BytesIO())
    return made.getvalue()


def arrow(rows):
    pyarrow = pytest.importorskip("pyarrow")
    table, made = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(made, table.schema) as writer:
        writer.write_table(table)
    return made.getvalue()


PAIRS = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(5)]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.tsv", "p.txt", "p", "p.jsonl.gz", "p.arrow"])
def test_a_parquet_file_of_another_name_is_called_one_and_can_be_read_after_the_remedy(tmp_path, name):
    said = error(tmp_path / name, parquet(PAIRS))
    assert said.what == "the file is a parquet file, but its name does not say so"
    assert said.remedy == "rename it: p.parquet"
    (tmp_path / name).rename(tmp_path / said.remedy.removeprefix("rename it: "))
    assert len(read(tmp_path / "p.parquet").items) == 5


@pytest.mark.parametrize(
    ("name", "make", "what", "remedy"),
    [
        ("a.jsonl", arrow, "an arrow file", "a.arrow"),
        ("a.parquet", arrow, "an arrow file", "a.arrow"),
        ("a.parquet", lines, "JSON text", "a.jsonl"),
        ("a.arrow", lines, "JSON text", "a.jsonl"),
        ("a.jsonl", lambda rows: gzip.compress(lines(rows), mtime=0), "compressed with gzip", "a.jsonl.gz"),
    ],
)
def test_a_file_of_another_name_can_be_read_after_the_remedy(tmp_path, name, make, what, remedy):
    said = error(tmp_path / name, make(PAIRS))
    assert said.what == f"the file is {what}, but its name does not say so"
    assert said.remedy == f"rename it: {remedy}"
    (tmp_path / name).rename(tmp_path / remedy)
    assert len(read(tmp_path / remedy).items) == 5


@pytest.mark.parametrize(
    ("name", "data", "what", "remedy"),
    [
        ("a.jsonl", bz2.compress(lines(PAIRS)), "the file is compressed with bzip2", "unpack it"),
        ("a.csv", b"PK\x03\x04 a spreadsheet", "the file is a zip archive", "unpack it; of a spreadsheet, save the"),
        ("a.jsonl", b"SQLite format 3\x00", "the file is an SQLite database", "export its table"),
        ("a.parquet", gzip.compress(lines(PAIRS), mtime=0), "the file is compressed with gzip", "unpack it"),
        (
            "a.jsonl.gz",
            gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
            "what is inside is compressed with gzip",
            "unpack it",
        ),
    ],
)
def test_a_packed_file_is_to_be_unpacked(tmp_path, name, data, what, remedy):
    said = error(tmp_path / name, data)
    assert said.what == what
    assert said.remedy.startswith(remedy)


def test_a_table_may_begin_with_the_letters_of_another_kind(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"PAR1,prompt,chosen,rejected\n1,Q,a,b\n")
    assert len(read(tmp_path / "a.csv").items) == 1
    (tmp_path / "b.csv").write_bytes(b"BZh9,prompt,chosen,rejected\n1,Q,a,b\n")
    assert len(read(tmp_path / "b.csv").items) == 1


def test_a_parquet_file_that_was_cut_is_not_called_a_file_of_another_name(tmp_path):
    assert error(tmp_path / "a.parquet", parquet(PAIRS)[:-20]).what == "is not a readable parquet file"
