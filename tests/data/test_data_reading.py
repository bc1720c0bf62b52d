"""Files, folders, detection, overrides, and the messages when something is wrong."""

import gzip
import json
import subprocess
import sys

import pytest

from afzal.data import read
from afzal.data.magic import other_encoding
from afzal.errors import AfzalError

ROWS = [{"prompt": f"Q{n}", "chosen": f" good {n}", "rejected": f" bad {n}"} for n in range(5)]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def content(dataset):
    return [(item.prompt, [r.turns for r in item.responses], item.votes) for item in dataset.items]


def error(path, **kwargs):
    with pytest.raises(AfzalError) as caught:
        read(path, **kwargs)
    return caught.value


# --- kinds of files ---------------------------------------------------------------------------------------------------


def as_csv(separator):
    body = "\n".join(separator.join(row.values()) for row in ROWS)
    return separator.join(ROWS[0]) + "\n" + body + "\n"


TEXTS = {
    "a.jsonl": lines(ROWS),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(ROWS).encode(),
    "crlf.jsonl": lines(ROWS).replace("\n", "\r\n"),
    "blank.jsonl": "\n" + lines(ROWS).replace("\n", "\n\n \t\n"),
    "no_end.jsonl": lines(ROWS).rstrip(),
    "a.ndjson": lines(ROWS),
    "a.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode(),
    "table.json": json.dumps({"version": 1, "data": ROWS}, indent=1),
    "really_lines.json": lines(ROWS),
    "really_array.jsonl": json.dumps(ROWS, indent=2),
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "no_name": lines(ROWS),
    "a.csv": as_csv(","),
    "a.tsv": as_csv("\t"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", list(TEXTS))
def test_every_kind_of_text_file_gives_the_same_items(tmp_path, name, packed):
    text = TEXTS[name]
    data = text if isinstance(text, bytes) else text.encode()
    path = put(tmp_path, name + (".gz" if packed else ""), gzip.compress(data, mtime=0) if packed else data)
    reference = read(put(tmp_path / "ref", "ref.jsonl", lines(ROWS)))
    dataset = read(path)
    assert content(dataset) == content(reference)
    assert dataset.fingerprint == reference.fingerprint
    assert dataset.rows == 5


def test_parquet_arrow_and_datasets_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa

    expected = content(read(put(tmp_path / "ref", "ref.jsonl", lines(ROWS))))
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "dict")
    arrow = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, arrow.schema) as writer:
        writer.write_table(arrow)
    for name in ("a.parquet", "file.arrow", "saved", "dict"):
        assert content(read(tmp_path / name)) == expected, name
    stream = next((tmp_path / "saved").glob("*.arrow"))
    assert content(read(stream)) == expected
    assert len(read(tmp_path / "dict" / "test").items) == 1
    assert read(tmp_path / "a.parquet").items[2].where.endswith("a.parquet:3")


def test_splits_are_named_when_none_is_train(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"a": table, "b": table}).save_to_disk(tmp_path / "dict")
    assert "several splits: a, b" in str(error(tmp_path / "dict"))


def test_a_hub_id_goes_to_the_datasets_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        table = datasets.Dataset.from_list(ROWS)
        return table if kwargs["split"] else datasets.DatasetDict({"train": table, "test": table.select([0])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert len(read("owner/name").items) == 5
    assert read("owner/name:part@test").items[0].where == "owner/name:part@test:1"
    assert asked == [(("owner/name", None), {"split": None}), (("owner/name", "part"), {"split": "test"})]

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    said = error("owner/name")
    assert "owner/name" in said.what
    assert said.why == "no route to host"


def test_a_folder_of_files_is_read_in_name_order(tmp_path):
    put(tmp_path, "d/b.jsonl", lines(ROWS[2:]))
    put(tmp_path, "d/a.jsonl", lines(ROWS[:2]))
    put(tmp_path, "d/.hidden/c.jsonl", "{")
    put(tmp_path, "d/README.md", "text")
    assert [item.prompt for item in read(tmp_path / "d").items] == ["Q0", "Q1", "Q2", "Q3", "Q4"]
    put(tmp_path, "d/c.csv", as_csv(","))
    assert "mixes kinds of files: .csv .jsonl" in str(error(tmp_path / "d"))
    (tmp_path / "empty").mkdir()
    assert "no data files" in str(error(tmp_path / "empty"))


def test_csv_keeps_quoted_line_breaks_and_names_the_first_line_of_a_row(tmp_path):
    path = put(tmp_path, "a.csv", 'prompt,chosen,rejected\n"Q\n1","a ""b""",c\nQ2,d,\nQ3,x,y\n')
    dataset = read(path)
    assert dataset.items[0].prompt == "Q\n1"
    assert dataset.items[0].responses[0].turns == 'a "b"'
    assert [(drop.where, drop.reason) for drop in dataset.drops] == [(f"{path}:4", "empty_response")]
    assert dataset.items[1].where == f"{path}:5"


# --- damage ---------------------------------------------------------------------------------------------------------

GOOD = json.dumps(ROWS[0])
DAMAGE = {
    "not_json": (b'{"prompt": "a", "chosen": ', "is not JSON"),
    "not_utf8": (b'{"prompt": "a\xff", "chosen": "b", "rejected": "c"}', "byte 73 of the file (0xff) is not UTF-8"),
    "nan": (b'{"prompt": "a", "chosen": NaN, "rejected": "c"}', "field 'chosen' has NaN"),
    "null": (b'{"prompt": "a", "chosen": null, "rejected": "c"}', "field 'chosen' is null"),
    "missing": (b'{"prompt": "a", "chosen": "b"}', "field 'rejected' is missing"),
    "number": (b'{"prompt": "a", "chosen": 3, "rejected": "c"}', "field 'chosen' is a number (3), not text"),
    "true": (b'{"prompt": "a", "chosen": true, "rejected": "c"}', "field 'chosen' is true, not text"),
    "list": (b'{"prompt": "a", "chosen": ["b"], "rejected": "c"}', "field 'chosen' is a list, not text"),
    "twice": (b'{"prompt": "a", "prompt": "z", "chosen": "b", "rejected": "c"}', "field 'prompt' occurs twice"),
    "array": (b'["a", "b"]', "is a list, not a JSON object"),
    "scalar": (b"17", "is a number (17), not a JSON object"),
    "surrogate": (b'{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}', "half of a surrogate pair"),
    "deep": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "huge_int": (
        b'{"prompt": "a", "chosen": "b", "rejected": "c", "n": ' + b"9" * 5000 + b"}",
        "number that cannot be read",
    ),
    "weight": (b'{"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1}', "field 'weight' is -1, below 0"),
    "probability": (
        b'{"prompt": "a", "chosen": "b", "rejected": "c", "p": 1.5}',
        "field 'p' is 1.5, not a probability",
    ),
    "two_rows": (GOOD.encode() * 2, "is not JSON: extra data"),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damage_names_the_true_line_and_the_field(tmp_path, kind):
    line, told = DAMAGE[kind]
    good = GOOD.encode()
    path = put(tmp_path, "a.jsonl", b"\n".join([good, line, b"", good, line, good]) + b"\n")
    said = error(path)
    assert said.where == f"{path}:2"
    assert told in said.what
    assert "2 of 5 rows cannot be read" in said.why
    assert f"{path}:5" in said.why
    assert "--skip-bad" in said.remedy

    dataset = read(path, on_error="drop")
    assert (len(dataset.items), dataset.rows, dataset.kept) == (3, 5, 3)
    assert [drop.where for drop in dataset.drops] == [f"{path}:2", f"{path}:5"]
    assert [item.where for item in dataset.items] == [f"{path}:{n}" for n in (1, 4, 6)]


def test_a_file_cut_off_inside_its_last_row(tmp_path):
    path = put(tmp_path, "a.jsonl", lines(ROWS)[:-20])
    said = error(path)
    assert said.where == f"{path}:5"
    assert "was it cut off?" in said.what


@pytest.mark.parametrize("fault", ['{"prompt": ', '{"prompt" 1}]', "[1, 2", '{"a": 1}'])
def test_a_broken_array_names_its_line(tmp_path, fault):
    path = put(tmp_path, "a.json", f"[\n{GOOD},\n{fault}")
    assert error(path).where == f"{path}:3"


def test_array_rows_have_their_own_lines(tmp_path):
    path = put(tmp_path, "a.json", f'[\n{GOOD},\n\n{GOOD},\n{{"prompt": "a"}}\n]')
    assert error(path).where == f"{path}:5"
    assert [item.where for item in read(path, on_error="drop").items] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.jsonl", b"\n\n  \n", "holds no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "holds no rows"),
        ("a.csv", b"prompt,prompt\na,b\n", "'prompt' occurs twice in the header"),
        ("a.csv", b"prompt,chosen,rejected\na,b\n", "has 2 cells, the header has 3"),
        ("a.csv", b'prompt,chosen,rejected\n"a,b,c\nd,e,f\n', "unclosed quote"),
        ("a.csv", b"prompt,chosen,rejected\na,\xff,c\n", "byte 25 (0xff) is not UTF-8"),
        ("a.jsonl", GOOD.encode("utf-16"), "UTF-16"),
        ("a.jsonl", gzip.compress(GOOD.encode(), mtime=0), "rename it: a.jsonl.gz"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS * 50).encode(), mtime=0)[:-30], "cannot be unpacked"),
        ("a.jsonl.gz", b"not gzip", "cannot be unpacked"),
        ("a.parquet", b"not parquet", "not a readable parquet file"),
        ("a.arrow", b"not arrow", "not a readable arrow file"),
        ("a.xlsx", b"PK\x03\x04", "the file is a zip archive"),
        ("a.doc", b"\xd0\xcf\x11\xe0", "unknown kind of file"),
        ("a.json", f"[{GOOD}] trailing".encode(), "more text follows"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, data, told):
    path = put(tmp_path, name, data)
    said = error(path)
    assert str(path) in said.where
    assert told in str(said)


TABLE = "prompt,chosen,rejected\nSavol,Ha,Yoʻq\n"
CYRILLIC = "савол,жавоб,хато\nҚалайсан,Яхши,Ёмон\n"


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", GOOD), ("a.json", f"[{GOOD}]"), ("a.csv", TABLE), ("b.csv", CYRILLIC), ("a", GOOD)]
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_in_another_unicode_encoding_is_named_with_the_command_that_converts_it(
    tmp_path, name, text, encoding, mark
):
    path = put(tmp_path, name, (mark + text).encode(encoding))
    said = error(path)
    # a mark says the order of the bytes; without one, the name must
    named = encoding[:6].upper() + ("" if mark else encoding[7:].upper())
    assert said.what == f"the file is {named}, not UTF-8"
    assert said.where == str(path)
    assert f"iconv -f {named} -t UTF-8 {name} > utf8-{name}" in said.remedy
    assert path.read_bytes().decode(named) == text


@pytest.mark.parametrize("text", ["a\0b,c\nd,e", "\0\0\0\0", "{", "", "a", "ab\0", "あ,い\nう,え\n", "\n\n\n\n\n\0a"])
def test_utf_8_is_not_taken_for_another_encoding(text):
    assert other_encoding(text.encode()) == ""


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path):
    put(tmp_path, "prefs.jsonl", lines(ROWS))
    said = error(tmp_path / "pref.jsonl")
    assert "pref.jsonl" in said.what
    assert "prefs.jsonl" in said.remedy


# --- detection and overrides ------------------------------------------------------------------------------------------


def test_unknown_rows_are_shown_with_the_nearest_format_and_the_fix(tmp_path):
    path = put(tmp_path, "a.jsonl", lines([{"question": "Q", "better": "a", "worse": "b"}]))
    said = error(path)
    assert "question, better, worse" in said.why
    assert "nearest format" in said.why
    assert said.remedy.endswith("--columns prompt=question,chosen=better,rejected=worse")
    dataset = read(path, columns={"prompt": "question", "chosen": "better", "rejected": "worse"})
    assert (dataset.format, dataset.items[0].responses[0].turns) == ("standard", "a")
    assert "better: better (given for chosen)" in dataset.notes
    short = error(put(tmp_path, "b.jsonl", lines([{"q": "Q", "good": "a", "bad": "b", "quality": 3}])))
    assert short.remedy.endswith("--columns prompt=q,chosen=good,rejected=bad")


def test_values_of_another_type_in_every_row_are_reported(tmp_path):
    path = put(tmp_path, "a.jsonl", lines([{"prompt": "Q", "chosen": 1, "rejected": 2}] * 3))
    assert "'chosen' is a number (1)" in error(path).why


def test_a_typo_next_to_a_local_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "stories").mkdir(parents=True)
    with pytest.raises(AfzalError) as said:
        read("data/storeis")  # without asking the hub, which takes half a minute without a network
    assert str(said.value) == "no such file or folder: data/storeis\n  try: did you mean data/stories?"


def test_a_typo_in_a_column_name_is_reported(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "Q", "chosen": "a", "rejected": "b", "topic": "t"}\n')
    with pytest.raises(AfzalError) as said:
        read(path, columns={"promt": "q"})
    assert str(said.value) == "columns: no format reads a field 'promt'\n  try: did you mean prompt?"
    (item,) = read(path, columns={"prompt": "q", "category": "topic"}).items  # names for other purposes are free
    assert item.extra["category"] == "t"


def test_columns_reach_into_objects_and_refuse_unknown_names(tmp_path):
    path = put(tmp_path, "a.jsonl", lines([{"x": {"q": "Q"}, "good": "a", "bad": "b"}]))
    dataset = read(path, columns={"prompt": "x.q", "chosen": "good", "rejected": "bad"})
    assert dataset.items[0].prompt == "Q"
    said = error(path, columns={"prompt": "x.q", "chosen": "goood", "rejected": "bad"})
    assert "no field 'goood'" in said.what
    assert "did you mean 'good'" in said.remedy


def test_ambiguous_rows_name_the_candidates_and_a_format_settles_it(tmp_path):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "response_0": "c", "response_1": "d", "better_response_id": 1}
    path = put(tmp_path, "a.jsonl", lines([row]))
    said = error(path)
    assert "standard, pku_saferlhf" in said.what
    assert read(path, format="pku_saferlhf").items[0].votes[0].outcome == "second"
    assert read(path, format="standard").items[0].responses[0].turns == "a"
    assert "did you mean standard" in error(path, format="standrad").remedy


def test_one_damaged_row_does_not_change_the_format(tmp_path):
    path = put(tmp_path, "a.jsonl", lines([{"prompt": "only"}, *ROWS]))
    said = error(path)
    assert said.where == f"{path}:1"
    assert "field 'chosen' is missing" in said.what


def test_rows_whose_media_are_missing_are_damaged(tmp_path):
    path = put(tmp_path, "a.jsonl", lines([*ROWS, ROWS[0] | {"images": ["x.png"]}, ROWS[0] | {"images": []}]))
    dataset = read(path, on_error="drop")
    assert (len(dataset.items), dataset.drop_counts) == (6, {"media_missing": 1})
    assert error(path).what == f"'x.png' is not a file in {tmp_path.name}/, the data's folder"


def test_a_file_without_usable_rows_says_why(tmp_path):
    path = put(tmp_path, "a.jsonl", lines([{"prompt": "Q", "chosen": " ", "rejected": "b"}] * 3))
    said = error(path)
    assert "none of 3 rows" in said.what
    assert "empty_response 3" in said.why


def test_empty_answers_of_many_are_left_out_of_the_item(tmp_path):
    path = put(tmp_path, "a.jsonl", lines([{"prompt": "Q", "responses": ["a", " ", "c"], "scores": [1, 2, 3]}]))
    dataset = read(path)
    (item,) = dataset.items
    assert [r.turns for r in item.responses] == ["a", "c"]
    assert [(v.response, v.value) for v in item.votes] == [(0, 1.0), (1, 3.0)]
    assert dataset.drop_counts == {"empty_response (part)": 1}
    assert dataset.kept == 1


def test_the_fingerprint_follows_content_and_order_only(tmp_path):
    first = read(put(tmp_path, "a.jsonl", lines(ROWS))).fingerprint
    assert read(put(tmp_path, "b.csv", as_csv(","))).fingerprint == first
    assert read(put(tmp_path, "c.jsonl", lines(ROWS[::-1]))).fingerprint != first
    flipped = [{"prompt": r["prompt"], "chosen": r["rejected"], "rejected": r["chosen"]} for r in ROWS]
    assert read(put(tmp_path, "d.jsonl", lines(flipped))).fingerprint != first


def test_reading_and_auditing_ten_thousand_rows_needs_no_heavy_library(tmp_path):
    words = ("good", "bad")
    rows = [
        {"prompt": f"Q{n}", "chosen": f" {words[n % 2]} {n}" * 20, "rejected": f" {words[1 - n % 2]} {n}" * 20}
        for n in range(10_000)
    ]
    path = put(tmp_path, "a.jsonl", lines(rows))
    code = (
        "import sys\nfrom afzal import cli\n"
        f"code = cli.main(['check', {str(path)!r}])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'{code} {sorted(heavy)}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == "0 []", done.stderr
    assert "rows: 10000 (10000 used)" in done.stdout


@pytest.mark.parametrize("name", ["p", "p_chosen", "preference_prob", "probability"])
def test_a_stated_probability_is_that_of_the_chosen_answer(tmp_path, name):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", name: 0.2}
    (item,) = read(put(tmp_path, "rows.jsonl", lines([row]))).items
    (vote,) = item.votes
    assert [item.responses[k].turns for k in (vote.first, vote.second)] == ["b", "c"]
    assert vote.probability == 0.2
