"""YAML that expands to far more than the file contains is an immediate user error."""

from pathlib import Path

import pytest

from afzal.cli import main
from afzal.config import load
from afzal.errors import AfzalError
from afzal.report import run_files

CASES = Path(__file__).parents[3] / "shared" / "cases"
HEAD = "method: dpo\nmodel: m\ndata: d\n"
BOMB = (
    HEAD
    + "out: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{key}: &{name} [{','.join(['*' + old] * 9)}]\n"
        for key, name, old in zip(
            ["seed", "lr", "epochs", "beta", "warmup", "axis", "clean", "skip_bad"], "bcdefghi", "abcdefgh", strict=True
        )
    )
)
ODD = {
    "bomb": (BOMB, "aliases are not read"),
    "alias of a known key": (HEAD + "lr: &x 1e-6\nbeta: *x\n", "aliases are not read"),
    "merge": (HEAD + "x: &x {lr: 1}\n<<: *x\n", "aliases are not read"),
    "loop": (HEAD + "out: &a [*a]\n", "aliases are not read"),
    "deep list": (HEAD + "out: " + "[" * 50_000 + "\n", "nested more than 20 deep"),
    "deep mapping": (HEAD + "out: " + "{a: " * 50_000 + "\n", "nested more than 20 deep"),
    "deep blocks": (HEAD + "".join(" " * n + "a:\n" for n in range(300)), "nested more than 20 deep"),
    "long number": (HEAD + "seed: " + "1" * 5000 + "\n", "not valid YAML"),
    "no date": (HEAD + "out: 2001-99-99\n", "not valid YAML"),
    "large": (HEAD + "#" * 2**20, "larger than 1 MiB"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_yaml_is_refused_in_words(tmp_path, capsys, name):
    text, said = ODD[name]
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(AfzalError) as caught:
        load(path)
    assert said in str(caught.value)
    assert main(["train", str(path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("value", ["[" * 5000, "&a [*a]", "2001-99-99", "1" * 5000, "{a: *b}"])
def test_odd_values_on_the_command_line_are_refused(value):
    from afzal.config import read_override, resolve

    settings = [read_override(text) for text in ("method=dpo", "model=m", "data=d", f"lr={value}")]
    with pytest.raises(AfzalError, match="lr"):
        resolve(settings)


def test_a_report_ignores_settings_that_expand_to_too_much(tmp_path):
    (tmp_path / "run.yaml").write_text(BOMB)
    notes: list[str] = []
    assert run_files._yaml(tmp_path / "run.yaml", notes) == {}
    assert "aliases" in notes[0]


@pytest.mark.shared
def test_the_shared_bomb_is_refused():
    path = CASES / "yaml_bomb.yaml"
    if not path.exists():
        pytest.skip("the shared cases are not here")
    with pytest.raises(AfzalError, match="aliases are not read"):
        load(path)
