"""Columns give the same results in memory and in a file, and whether repeats are found by a set or by sorting."""

import random
from array import array
from dataclasses import asdict

import pytest

from afzal.data import read
from afzal.quality import audit, columns
from afzal.quality.columns import Column, Names, clusters, distinct, repeated
from afzal.stats.intervals import clustered, share

LENGTHS = (0, 1, 5, 8, 9, 40, 333)


@pytest.fixture
def small(monkeypatch):
    """Columns of three and more numbers go to a file, and of five and more are sorted."""
    monkeypatch.setattr(columns, "_HELD", 3 * 8)
    monkeypatch.setattr(columns, "_MANY", 5)


def filled(code, numbers):
    """A column made by single numbers and by several at once."""
    column, rest = Column(code, numbers[:2]), numbers[2:]
    while rest:
        column.append(rest[0])
        column.extend(rest[1:4])
        rest = rest[4:]
    return column


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("code", ["q", "I", "d", "B"])
def test_numbers_come_back_from_a_file_as_they_were_put(small, code, length):
    drawn = random.Random(length)
    numbers = list(array(code, [drawn.randrange(200) for _ in range(length)]))
    column = filled(code, numbers)
    assert (column._file is not None) == (length * array(code).itemsize >= 3 * 8)
    assert list(column) == [column[at] for at in range(length)] == numbers
    assert [column[at - length] for at in range(length)] == numbers, "counted from the end"
    for beyond in (length, -length - 1):
        with pytest.raises(IndexError):
            column[beyond]
    assert len(column) == length
    for start in range(0, length, 7):
        for stop in range(start, length, 5):
            assert list(column.read(start, stop)) == numbers[start:stop]
    column.append(7)  # after a read
    assert list(column.read()) == [*numbers, 7]
    with pytest.raises(TypeError, match="read"):
        column[0:1]


def test_bytes_are_put_end_to_end(small):
    column = Column("B")
    for _ in range(20):
        column.extend(b"\x00\xff\x10")
    assert bytes(column.read()) == b"\x00\xff\x10" * 20


def test_names_come_back_from_a_file(small):
    told = ["a", "", "\u00e9\ud800", "bc", "a" * 50] * 9
    names = Names()
    names.append(told[0])
    names.extend(told[1:])
    assert [names[at] for at in range(len(told))] == told
    assert names.first([3, 8, 1, 4]) == ["bc", "", "a" * 50]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("values", [1, 3, 60, 10**6])
def test_sorting_finds_what_a_set_finds(monkeypatch, length, values):
    drawn = random.Random(length * values)
    numbers = [drawn.randrange(values) - values // 2 for _ in range(length)]
    column = Column("q", numbers)
    few = list(repeated(column)), distinct(column), clusters(column, numbers, Column("d", numbers))
    monkeypatch.setattr(columns, "_HELD", 16)
    monkeypatch.setattr(columns, "_MANY", 2)
    column = filled("q", numbers)
    assert (list(repeated(column)), distinct(column), clusters(column, numbers, filled("d", numbers))) == few
    assert list(column) == numbers, "the column itself is not sorted"
    assert few[1] == len(set(numbers))
    assert sorted(map(tuple, few[0])) == sorted(
        places for n in set(numbers) if len(places := tuple(at for at, other in enumerate(numbers) if other == n)) > 1
    )


def test_an_audit_says_the_same(tmp_path, monkeypatch):
    drawn, rows = random.Random(1), []
    for _ in range(300):
        prompt, answers = drawn.randrange(60), drawn.sample("abcd", 2)
        rows.append({"id": f"row-{drawn.randrange(290)}", "prompt": f"Ask {prompt}"})
        rows[-1] |= {"chosen": answers[0] * drawn.randrange(1, 9), "rejected": answers[1] * 4}
        rows[-1] |= {"source": drawn.choice(["web", "book"])}
    import json

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = asdict(audit(read(file)))
    assert {f["code"] for f in whole["findings"] if f["count"]} >= {"duplicate_ids", "contradictions", "length_bias"}
    monkeypatch.setattr(columns, "_HELD", 64)
    monkeypatch.setattr(columns, "_MANY", 2)
    assert asdict(audit(read(file))) == whole


def test_a_share_of_alike_prompts_is_that_of_as_many_objects():
    """Objects with a count of prompts add up like as many equal objects, to the last bit."""
    drawn = random.Random(3)
    keys, values = [drawn.randrange(400) for _ in range(500)], [drawn.random() < 0.4 for _ in range(500)]
    apart = share(clustered(keys, map(float, values)))
    assert share(clusters(Column("q", keys), values)) == apart
    one = clustered([0], [1.0])[0], clustered([0], [0.0])[0]
    several = share([one[0]] * 30 + [one[1]] * 12)
    assert several == share(clustered(range(42), [1.0] * 30 + [0.0] * 12))
    assert several.value == 30 / 42
