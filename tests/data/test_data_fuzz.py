"""Damaged files: only ever an AfzalError, always the true line, no row lost uncounted."""

import json
import random
import resource
from collections import Counter
from pathlib import Path

import pytest

from afzal.cli import main
from afzal.data import FORMATS, plan, read
from afzal.errors import AfzalError
from afzal.quality import audit, clean

WORDS = ["sky", "sea", "blue", "green", "why", "how", "ok", "éä", "天空", "🙂", "\u2028", "\t"]


def rows(rng, n):
    def words():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 12))) + "."

    style = rng.randrange(4)
    for k in range(n):
        if style == 0:
            yield {"prompt": f"{k} {words()}", "chosen": "y" + words(), "rejected": "n" + words()}
        elif style == 1:
            ask = {"role": "user", "content": f"{k} {words()}"}
            yield {side: [ask, {"role": "assistant", "content": side + words()}] for side in ("chosen", "rejected")}
        elif style == 2:
            yield {"prompt": f"{k} {words()}", "completion": "y" + words(), "label": rng.random() < 0.5}
        else:
            head = f"\n\nHuman: {k} {words()}\n\nAssistant:"
            yield {"chosen": f"{head} y{words()}", "rejected": f"{head} n{words()}"}


def field_of(row, rng):
    return rng.choice([name for name in row if name != "label"])


def with_field(line, rng, change):
    row = json.loads(line)
    change(row, field_of(row, rng))
    return json.dumps(row).encode()


def cut(line, rng):
    return line[: rng.randrange(1, len(line))]


def flip(line, rng):
    at = rng.randrange(len(line))
    return line[:at] + bytes([line[at] ^ (1 << rng.randrange(8))]) + line[at + 1 :]


def insert_byte(line, rng):
    at = line.index(b'"') + 1
    return line[:at] + bytes([rng.randrange(0x80, 0x100)]) + line[at:]


def duplicate_key(line, rng):
    name = field_of(json.loads(line), rng)
    return b'{"%s": "again", ' % name.encode() + line[1:]


def setter(value):
    return lambda line, rng: with_field(line, rng, lambda row, name: row.__setitem__(name, value))


# Kind of damage -> (mutation of a line, whether the line must be reported as unreadable).
MUTATIONS = {
    "cut": (cut, True),
    "flip": (flip, None),
    "not_utf8": (insert_byte, True),
    "missing": (lambda line, rng: with_field(line, rng, lambda row, name: row.pop(name)), True),
    "null": (setter(None), True),
    "number": (setter(3.5), True),
    "list": (setter([1, 2]), True),
    "object": (setter({"a": 1}), True),
    "nan": (lambda line, rng: with_field(line, rng, lambda row, name: row.__setitem__(name, float("nan"))), True),
    "empty": (setter("  "), None),
    "duplicate_key": (duplicate_key, True),
    "blank": (lambda line, rng: rng.choice([b"", b"   ", b"\t"]), False),
    "garbage": (lambda line, rng: bytes(rng.randrange(256) for _ in range(40)).replace(b"\n", b"x"), None),
    "array": (lambda line, rng: b"[" + line + b"]", True),
    "extra_field": (
        lambda line, rng: with_field(line, rng, lambda row, name: row.__setitem__("extra", {"a": [None]})),
        False,
    ),
    "two_rows": (lambda line, rng: line + line, True),
}


FIELD_KINDS = ("missing", "null", "number", "list", "object", "nan")


def damaged(rng, kind):
    """(bytes of a file, number of its damaged line, name of its damaged field or "")."""
    made = [json.dumps(row, ensure_ascii=False).encode() for row in rows(rng, rng.randint(2, 30))]
    at = rng.randrange(len(made))
    sound = json.loads(made[at])
    made[at] = MUTATIONS[kind][0](made[at], rng)
    field = ""
    if kind in FIELD_KINDS:
        row = json.loads(made[at])
        (field,) = (name for name in sound if name not in row or row[name] != sound[name])
    end = rng.choice([b"\n", b"\r\n"])
    return rng.choice([b"", b"\xef\xbb\xbf"]) + end.join(made) + rng.choice([b"", end, end * 3]), at + 1, field


def attempt(path, on_error):
    try:
        return read(path, on_error=on_error), None
    except AfzalError as error:
        return None, error


def check(path, kind, line, field):
    """Read the file both ways; return whether its fault was reported with its true line, and any field."""
    must = MUTATIONS[kind][1]
    dataset, error = attempt(path, "raise")
    if must is not None:
        assert (error is not None) is must, (kind, str(error))
    told = error is not None and error.where == f"{path}:{line}"
    if error and not told:  # faults of the file itself have no line; those of a row never have a wrong one
        assert error.where == str(path), (kind, str(error))
        assert "rows cannot be read" not in error.why
    if told and field:
        assert f"'{field}'" in error.what, (kind, str(error))
    dataset, _ = attempt(path, "drop")
    if dataset is not None:
        assert dataset.rows == dataset.kept + sum(drop.is_complete for drop in dataset.drops)
        assert audit(dataset).rows == dataset.rows
        items, drops = clean(dataset.items)
        assert len(items) + sum(drop.is_complete for drop in drops) == len(dataset.items)
    return told


def run(folder, files, seed, capsys):
    """Damaged files of every kind in turn: each must give a correct result or a correct error."""
    rng, told = random.Random(seed), Counter()
    path = folder / "a.jsonl"
    for n in range(files):
        kind = list(MUTATIONS)[n % len(MUTATIONS)]
        data, line, field = damaged(rng, kind)
        path.write_bytes(data)
        told[kind] += check(path, kind, line, field)
        if n % 5 == 0:  # 5 and the number of kinds have no common factor, so every kind has its turn
            command_line(path, capsys)
    each = files // len(MUTATIONS)
    assert {kind: n for kind, n in told.items() if MUTATIONS[kind][1] and n < 0.95 * each} == {}


def command_line(path, capsys):
    """`afzal check` exits with 2 and one short block if a file cannot be read, else with 0 or 1; no traceback."""
    error = attempt(path, "raise")[1]
    code = main(["check", str(path)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if error is None:
        assert (code in (0, 1), said.err) == (True, "")
    else:
        assert (code, said.out, said.err) == (2, "", f"error: {error}\n")


def test_two_hundred_damaged_files(tmp_path, capsys):
    assert len(MUTATIONS) == 16
    run(tmp_path, 200, seed=0, capsys=capsys)


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path, capsys):
    run(tmp_path, 10_000, seed=1, capsys=capsys)


def test_arbitrary_bytes_under_every_name(tmp_path):
    rng = random.Random(2)
    for n in range(300):
        name = ("a.json", "a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz", "a.parquet", "a.arrow", "a")[n % 8]
        path = tmp_path / name
        path.write_bytes(rng.choice([b"", b"{", b"[", b'[{"', b"a,b\n"]) + rng.randbytes(rng.randrange(200)))
        with pytest.raises(AfzalError):
            read(path)


def test_damaged_arrays_and_tables_raise_nothing_else(tmp_path):
    rng = random.Random(3)
    for n in range(300):
        made = list(rows(rng, 5))
        if n % 2:
            path, data = tmp_path / "a.json", json.dumps(made, indent=rng.choice([None, 1])).encode()
        else:
            path = tmp_path / "a.csv"
            data = "\n".join(["prompt,chosen,rejected", *(f'"{k}",a b,c d' for k in range(5))]).encode()
        for _ in range(rng.randint(1, 3)):
            data = flip(data, rng)
        path.write_bytes(data)
        dataset, error = attempt(path, "drop")
        assert dataset.rows if dataset else str(path) in error.where


@pytest.mark.slow
def test_a_line_of_thirty_megabytes_and_a_late_fault(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"prompt": "Q", "chosen": " a", "rejected": " b"})
    with path.open("w") as out:
        for _ in range(40_000):
            out.write(good + "\n")
        out.write(json.dumps({"prompt": "Q" * 30_000_000, "chosen": " a", "rejected": " b"}) + "\n")
        out.write('{"prompt": "Q"\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AfzalError) as caught:
        read(path)
    assert caught.value.where == f"{path}:40002"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 700


FIXTURES = sorted((Path(__file__).parent.parent / "fixtures" / "formats").glob("*.jsonl"))
ODD = (
    None,
    True,
    0,
    -7,
    3.5,
    1e400,
    "",
    " ",
    "x",
    "[",
    '["a", 1]',
    [],
    [None],
    [1, 2],
    ["a", "b"],
    {},
    {"a": 1},
    [{"a": 1}],
    [[]],
)


def mutate(value, rng, depth=0):
    """The value with one part, at a random depth, replaced, removed or repeated."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        name = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != name}
        return value | {name: mutate(value[name], rng, depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], *([] if rng.random() < 0.1 else [mutate(value[at], rng, depth + 1)]), *value[at + 1 :]]
    return rng.choice(ODD)


@pytest.mark.parametrize("fixture", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_odd_values_anywhere_in_any_format(tmp_path, fixture):
    rng = random.Random(fixture.stem)
    sound = [json.loads(line) for line in fixture.read_text(encoding="utf-8").splitlines()]
    name = next((entry.name for entry in FORMATS if entry.applies(sound[0])), None)
    path = tmp_path / "a.jsonl"
    for _ in range(40):
        path.write_text("".join(json.dumps(mutate(row, rng)) + "\n" for row in sound))
        for format in (None, name):
            try:
                dataset = read(path, format=format, on_error="drop")
            except AfzalError:
                continue
            assert dataset.rows == len(sound)
            audit(dataset)
            clean(dataset.items)
            plan(dataset.items, "trl")
            plan(dataset.items, "conversational")
