"""The votes file: acknowledged lines are there, and the remains of a kill or a full disk are not read as lines."""

from __future__ import annotations

import errno
import os

import pytest

from afzal.errors import AfzalError
from afzal.web.journal import Journal


def test_lines_come_back_in_order(tmp_path):
    journal = Journal(tmp_path / "votes.jsonl")
    journal.append([{"id": "a", "note": "o‘zbek\u2028\n"}, {"id": "b"}])
    journal.append([{"id": "c"}])
    assert [line["id"] for line in journal.lines()] == ["a", "b", "c"]
    assert journal.lines()[0]["note"] == "o‘zbek\u2028\n"
    assert (tmp_path / "votes.jsonl").read_bytes().count(b"\n") == 3
    assert (tmp_path / "votes.jsonl").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("torn", [b"{", b'{"id": "c"}', b'{"id": "c", "note": "' + b"x" * 200_000, b"\x00\x00"])
def test_a_line_without_its_end_is_removed(tmp_path, torn):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b"}\n' + torn)
    journal = Journal(path)
    journal.append([{"id": "d"}])
    assert path.read_bytes() == b'{"id": "a"}\n{"id": "b"}\n{"id": "d"}\n'


def test_a_file_of_one_torn_line_is_emptied(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b'{"id')
    assert Journal(path).lines() == []
    assert path.read_bytes() == b""


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "votes.jsonl").write_bytes(b'{"id": "a"}\nnonsense\n{"id": "b"}\n')
    with pytest.raises(AfzalError, match=r"votes\.jsonl:2"):
        Journal(tmp_path / "votes.jsonl").lines()


def test_lines_that_the_disk_refuses_are_not_there(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "votes.jsonl")
    journal.append([{"id": "a"}])
    real, writes = os.write, []

    def full(descriptor, data):
        """Write half a line, then fail for lack of space."""
        if writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        writes.append(1)
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AfzalError, match="cannot write"):
        journal.append([{"id": "b"}])
    monkeypatch.undo()
    journal.append([{"id": "c"}])
    assert [line["id"] for line in journal.lines()] == ["a", "c"]


def test_lines_that_cannot_be_forced_out_are_not_there(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "votes.jsonl")

    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(AfzalError, match="cannot write"):
        journal.append([{"id": "b"}])
    monkeypatch.undo()
    assert journal.lines() == []


def test_every_append_is_forced_to_the_disk(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "votes.jsonl")
    forced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.fstat(descriptor).st_size))
    journal.append([{"id": "b"}])
    assert forced == [len('{"id": "b"}\n')]
