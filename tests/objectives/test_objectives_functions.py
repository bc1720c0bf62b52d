"""User functions: named by module or file, reloaded when the file changes, and the error messages."""

from __future__ import annotations

import pytest

from afzal import objectives
from afzal.objectives import bind, load_function, names_function, source_file

CODE = """
from __future__ import annotations
from dataclasses import dataclass
from beside_{name} import FACTOR

@dataclass
class Answer:
    text: str

def length(prompt: str, answer: str) -> float:
    return FACTOR * len(Answer(answer).text)

number = 3
"""

LOSS = """
from afzal.objectives import log_ratios, objective

@objective("{name}", unit="pair", needs_reference=True, at_reference={at}, aliases=("{name}_too",))
def loss(policy, reference, pairs, *, scale: float = 1.0):
    rho = log_ratios(policy, reference)
    return ({at} - scale * (rho[pairs.yw_idxs] - rho[pairs.yl_idxs])) ** 2, rho.detach()
"""


@pytest.fixture
def folder(tmp_path):
    """Module names are those of the test's folder, so that no other test has loaded them."""
    name = tmp_path.name
    (tmp_path / f"mine_{name}.py").write_text(CODE.format(name=name))
    (tmp_path / f"beside_{name}.py").write_text("FACTOR = 2\n")
    return tmp_path


def test_by_file_from_anywhere_and_by_module_from_its_folder(folder, monkeypatch):
    path = folder / f"mine_{folder.name}.py"
    by_file = load_function(f"{path}:length")
    assert by_file("why", "four") == 8
    assert load_function(f"{path}:length") is by_file
    assert source_file(f"{path}:length") == path
    monkeypatch.chdir(folder)
    assert load_function(f"mine_{folder.name}.py:length") is by_file
    assert source_file(f"mine_{folder.name}:length") == path  # found without being run
    assert load_function(f"mine_{folder.name}:length")("why", "four") == 8


def test_a_file_that_changed_is_read_again(tmp_path):
    """Also within the same second and at the same size, when stale bytecode would look fresh."""
    path = tmp_path / "own.py"
    for n in (1, 2, 3):
        path.write_text(f"def f(prompt, answer):\n    return {n}\n")
        assert load_function(f"{path}:f")("", "") == n


def test_what_fails_is_a_value_error_that_says_what(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "broken.py").write_text("x = 1 / 0\n")
    (folder / "lacking.py").write_text("import no_such_module_here\n")
    mine = f"mine_{folder.name}.py"
    for spec, said in {
        f"{mine}:absent": "has no function 'absent'",
        f"{mine}:number": "has no function 'number'",
        "other.py:f": "there is no file 'other.py'",
        "no_such_module_here:f": "there is no module 'no_such_module_here'",
        "broken.py:f": "broken.py fails while it is read: ZeroDivisionError",
        "lacking.py:f": "there is no module 'no_such_module_here'",
    }.items():
        with pytest.raises(ValueError, match=said):
            load_function(spec)


@pytest.mark.parametrize(
    ("spec", "is_one"), [("a.b:f", True), ("a/b.py:f", True), ("runs/rm", False), ("f", False), (":f", False)]
)
def test_what_is_taken_for_a_function(tmp_path, monkeypatch, spec, is_one):
    monkeypatch.chdir(tmp_path)
    assert names_function(spec) is is_one
    assert source_file(spec) is None


def test_a_folder_with_a_colon_in_its_name_is_no_function(tmp_path):
    (tmp_path / "rm:first").mkdir()
    assert not names_function(str(tmp_path / "rm:first"))


def test_an_objective_of_a_file_stands_in_sums_and_is_registered_anew_when_it_changes(tmp_path):
    path, name = tmp_path / "losses.py", f"loss_{tmp_path.name}"
    try:
        for at in (1, 2):
            path.write_text(LOSS.format(name=name, at=at))
            terms = bind(f"0.5*dpo + 2*{path}:loss", {f"{name}.scale": 3})
            assert [(t.name, t.weight) for t in terms] == [("dpo", 0.5), (name, 2.0)]
            assert terms[1].parameters == {"scale": 3.0}
            assert terms[1].objective.at_reference({}) == at
            assert objectives.get(f"{name}_too") is objectives.get(f"{path}:loss") is terms[1].objective
        other = tmp_path / "others.py"
        other.write_text(LOSS.format(name=name, at=1))
        with pytest.raises(ValueError, match="is registered twice"):
            bind(f"{other}:loss")
    finally:
        objectives.REGISTRY.pop(name, None)
        objectives.ALIASES.pop(f"{name}_too", None)
