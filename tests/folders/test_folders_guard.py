"""Errors of libraries are faults of the folder; a wrong call of Afzal's own is a bug and stays one."""

import json

import pytest

import afzal.folders.guard as guard_module
from afzal.errors import AfzalError
from afzal.folders.guard import guarded


def test_an_error_of_a_library_is_a_fault_of_the_folder():
    with pytest.raises(AfzalError, match="'here' does not load"), guarded("here"):
        json.loads("{")


def test_a_type_error_inside_a_library_is_a_fault_of_the_folder():
    with pytest.raises(AfzalError, match="'here' does not load"), guarded("here"):
        json.dumps([], unknown=1)  # json itself then calls its encoder wrongly


def test_a_wrong_call_is_a_bug(monkeypatch):
    """The package is taken to be this file's folder, so that the call below is one of Afzal's own."""
    monkeypatch.setattr(guard_module, "_PACKAGE", guard_module.Path(__file__).parent)

    def opened(path):
        return path

    with pytest.raises(TypeError, match="unexpected keyword"), guarded("here"):
        opened("here", patterns=None)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="required positional argument"), guarded("here"):
        opened()  # pyright: ignore[reportCallIssue]
    with pytest.raises(AfzalError), guarded("here"):
        raise TypeError("'list' object is not a mapping")
