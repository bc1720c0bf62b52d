"""Files of any size and kind in little memory, and faults at their true position."""

import csv
import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from afzal.cli import main
from afzal.data import read
from afzal.data.json_reader import read_array
from afzal.errors import AfzalError

CASES = Path(__file__).parents[3] / "shared" / "cases"
SOURCE = Path(__file__).resolve().parents[2] / "src"
ROWS = [{"prompt": f"Q {k}\n", "chosen": f' "{k}", good', "rejected": f" bad {k}"} for k in range(4)]


def fault(path, **how):
    with pytest.raises(AfzalError) as caught:
        read(path, **how)
    return caught.value


# --- text that is not UTF-8, in columns ---


def table(path, column, values):
    pyarrow = pytest.importorskip("pyarrow")
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    made = pyarrow.table({**columns, column: values})
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(made, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_file(out, made.schema) as writer:
            writer.write_table(made)


def not_text(values):
    pyarrow = pytest.importorskip("pyarrow")
    data = b"".join(values)
    ends = [sum(map(len, values[:k])) for k in range(len(values) + 1)]
    buffers = [None, pyarrow.array(ends, pyarrow.int32()).buffers()[1], pyarrow.py_buffer(data)]
    return pyarrow.StringArray.from_buffers(len(values), buffers[1], buffers[2])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["chosen", "prompt", "note"])
def test_text_of_a_column_that_is_not_utf8_is_a_fault_of_its_row(tmp_path, kind, column):
    path = tmp_path / f"a.{kind}"
    table(path, column, not_text([b"one", b"caf\xe9", b"three", b"four"]))
    error = fault(path)
    assert (error.where, "1 of 4 rows" in error.why) == (f"{path}:2", True)
    assert f"'{column}'" in error.what
    assert "0xe9" in error.what
    kept = read(path, on_error="drop")
    assert (len(kept.items), kept.drop_counts) == (3, {"not_utf8": 1})
    assert main(["check", str(path)]) == 2


def test_a_date_out_of_range_is_a_fault_of_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.arrow"
    table(path, "when", pyarrow.array([0, 2**62, 0, 0], pyarrow.timestamp("s")))
    assert fault(path).where == f"{path}:2"


@pytest.mark.shared
def test_the_shared_parquet_is_reported_and_skipped(capsys):
    path = CASES / "bad_utf8.parquet"
    if not path.exists():
        pytest.skip("the shared cases are not here")
    assert main(["check", str(path)]) == 2
    assert f"{path}:1: field 'chosen'" in capsys.readouterr().err
    assert "2 of 2 rows" in fault(path, on_error="drop").why  # and no row is left


# --- lines of tables ---


def cells(rows, end):
    out = io.StringIO()
    csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(
        [ROWS[0].keys(), *(row.values() for row in rows)]
    )
    return out.getvalue()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", [False, True])
def test_tables_are_read_alike_whatever_ends_their_lines(tmp_path, end, packed):
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    data = b"\xef\xbb\xbf" + cells(ROWS, end).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    items = read(path).items
    assert [(i.prompt, *(r.turns for r in i.responses)) for i in items] == [tuple(row.values()) for row in ROWS]
    assert len({item.where for item in items}) == 4


def test_a_lone_carriage_return_is_no_line(tmp_path):
    rows = [{**ROWS[0], "prompt": "a\rb\rc"}, {**ROWS[1], "prompt": "plain"}, {**ROWS[2], "prompt": "x"}]
    path = tmp_path / "a.csv"
    path.write_bytes(cells(rows, "\n").encode())
    assert [item.where for item in read(path).items] == [f"{path}:{n}" for n in (2, 3, 4)]
    assert read(path).items[0].prompt == "a\rb\rc"
    path.write_bytes(cells(rows, "\n").encode() + b"only one cell\n")
    assert fault(path).where == f"{path}:5"
    path.write_bytes(cells(rows, "\n").encode() + b"caf\xe9,x,y\n")
    error = fault(path)
    assert (error.where, "0xe9" in error.what) == (f"{path}:5", True)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_first_byte_that_is_no_text_is_named_however_late_it_comes(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    good = "a,b,c\n" * 300_000 if kind == "csv" else "[\n" + '{"prompt": "a"},\n' * 120_000
    path.write_bytes(good.encode() + "é".encode() + b"\xff")
    error = fault(path, format="prompts")
    assert error.where == f"{path}:{good.count(chr(10)) + 1}"
    assert error.what.startswith(f"byte {len(good) + 2} (0xff)")


# --- JSON documents through a window ---


class Trickle(io.RawIOBase):
    """A stream that gives a few bytes at a time."""

    def __init__(self, data, step):
        self.data, self.step = io.BytesIO(data), step

    def read(self, size=-1):
        return self.data.read(min(size, self.step))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_document_is_the_same_in_pieces_of_any_size(step, indent):
    rng = random.Random(0)
    rows = [{"text": 'é天\U0001f642\\"\n' * rng.randrange(9), "n": [1.5e-3, None, True, {"a": []}]} for _ in range(12)]
    data = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    whole = list(read_array(io.BytesIO(data), "a"))
    assert [raw.value for raw in whole] == rows
    assert list(read_array(Trickle(data, step), "a")) == whole


@pytest.mark.parametrize("step", [1, 5, 10_000])
@pytest.mark.parametrize(
    "text", ['[{"a": 1},\n {"a" 2}]', '[{"a": 1}', '[{"a": 1}]x', '[{"a": "b', "[\n\n{]", '[{"a": tru}]']
)
def test_faults_of_a_document_have_their_true_position(step, text):
    def said(stream):
        with pytest.raises(AfzalError) as caught:
            list(read_array(stream, "a"))
        return str(caught.value)

    assert said(Trickle(text.encode(), step)) == said(io.BytesIO(text.encode()))


# --- files that unpack to more than their size suggests ---


def test_a_bound_on_unpacked_bytes_that_a_flag_lifts(tmp_path, capsys):
    path = tmp_path / "a.jsonl.gz"
    row = json.dumps({"prompt": "Q " * 500, "chosen": " a", "rejected": " b"}) + "\n"
    path.write_bytes(gzip.compress(row.encode() * 2000))
    assert "unpacks to more" in fault(path, max_unpacked=2**20).what
    assert len(read(path, max_unpacked=0).items) == len(read(path).items) == 2000
    assert main(["check", str(path), "--max-unpacked", "0.001"]) == 2
    assert "--max-unpacked 0" in capsys.readouterr().err
    assert main(["check", str(path), "--max-unpacked", "0"]) in (0, 1)


def megabytes(folder, name, data, *args):
    """(exit code, peak resident memory in MB) of ``afzal check`` in a separate process."""
    path = folder / name
    path.write_bytes(data)
    code = (  # not ru_maxrss, which a new process inherits from the process that it was forked from
        "import sys\nfrom afzal.cli import main\ncode = main(sys.argv[1:])\n"
        "(peak,) = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(code, int(peak) / 1024)"
    )
    command = [sys.executable, "-c", code, "check", str(path), *args]
    env = {"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    code, peak = done.stdout.split()[-2:]
    return int(code), float(peak)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize(
    ("start", "repeated", "times"), [(b"", b"x", 390 * 2**20), (b'"', b"x", 390 * 2**20), (b"", b"a,b,c\n", 2 * 2**20)]
)
def test_a_small_file_that_unpacks_to_much_is_read_in_little_memory(tmp_path, start, repeated, times):
    packed = gzip.compress(b"prompt,chosen,rejected\n" + start + repeated * times)
    assert len(packed) < 3 * 2**20
    code, peak = megabytes(tmp_path, "a.csv.gz", packed, "--max-unpacked", "1")
    assert code in (1, 2)
    assert peak < 500


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "jsonl.gz"])
def test_a_million_rows_are_checked_in_flat_memory(tmp_path, kind):
    """At most 500 MB, whatever the kind of file."""
    n = 1_000_000

    def row(k):
        return f"Question {k} of many: how is this?", f" Rather well, says {k}. " * 4, f" Badly, {k}. " * 4

    path = tmp_path / f"a.{kind}"
    with gzip.open(path, "wt", compresslevel=1) if kind.endswith("gz") else path.open("w") as out:
        names = ("prompt", "chosen", "rejected")
        if kind == "csv":
            csv.writer(out).writerows([names, *map(row, range(n))])
        else:
            left, right, between = ("[", "]", ",\n") if kind == "json" else ("", "\n", "\n")
            out.write(left)
            for k in range(n):
                out.write((between if k else "") + json.dumps(dict(zip(names, row(k), strict=True))))
            out.write(right)
    code, peak = megabytes(tmp_path, f"a.{kind}", path.read_bytes())
    assert code in (0, 1)
    assert peak < 500
