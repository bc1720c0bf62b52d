"""The commands of the README and the examples run, and the file tree in the documentation is complete."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_next_steps import parse, proposed_commands
from helpers_tokenizers import CHATML, byte_tokenizer

import afzal
from afzal import objectives, runs
from afzal.cli import main
from benchmarks import guide

README = Path(__file__).resolve().parents[2] / "README.md"
FILES = README.parent / "docs" / "files.md"
RUN_FOLDER = README.parent / "docs" / "run-folder.md"
EXAMPLES = README.parent / "docs" / "examples.md"
PACKAGE = Path(afzal.__file__).parent
_GENERATED = {"__pycache__"}

# a barely trained model never emits EOS; it is asked for shorter answers, and nothing else is different
LESS = {
    ("iterate",): ["--prompts-per-round", "60", "--max-new-tokens", "24"],
    ("train", "rloo"): ["--sample-tokens", "24"],
}


def listed() -> list[str]:
    """The files in the page's tree, as paths below the package."""
    block = FILES.read_text(encoding="utf-8").partition("<!-- tree -->")[2].partition("```text\n")[2]
    return list(_paths(block.partition("```")[0].splitlines()[1:]))


def _paths(lines: list[str]) -> Iterator[str]:
    folders: list[str] = []
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        names = line.split()
        if names[0].endswith("/"):
            folders = [*folders[:depth], names[0]]
            continue
        together = all("." in name for name in names)
        yield from ("".join([*folders[:depth], name]) for name in (names if together else names[:1]))


def test_the_file_tree_names_every_file_once():
    there = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*") if p.is_file() and not _GENERATED & set(p.parts)}
    assert sorted(listed()) == sorted(there)


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README and of the page of examples that are marked runnable, in order."""
    pages = README.read_text(encoding="utf-8") + EXAMPLES.read_text(encoding="utf-8")
    return [block.text for block in guide.blocks(pages) if block.is_run and block.language == language]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that the README assumes: ``my-model``, ``prefs.jsonl`` and the file with a loss."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer(template=CHATML)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes))
    model.save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    more = [" Ask me more.", ""]  # either answer may be the longer one
    rows = [
        {
            "prompt": f"What is {n} and {n}?",
            "chosen": f"That makes {2 * n}.{more[n % 2]}",
            "rejected": f"No idea on {n}.{more[n // 2 % 2]}",
        }
        for n in range(240)
    ]
    (tmp_path / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (loss,) = re.findall(r"```python my_loss.py\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "my_loss.py").write_text(loss)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    objectives.REGISTRY.pop("squared_hinge", None)  # other tests check the registered objectives against their papers


def test_every_link_of_the_readme_leads_to_a_file():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text)
    named = [a or b for a, b in links if not (a or b).startswith("http")]
    assert len(named) > 20
    assert [name for name in named if not (README.parent / name).exists()] == []


def test_the_commands_and_the_python_lines_run(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) > 16
    asked: list[list[str]] = []
    for words in lines:
        assert words[0] == "afzal"
        code = main([*words[1:], *LESS.get(tuple(words[1:3]), LESS.get((words[1],), [])), "--debug"])
        told = capsys.readouterr()
        assert code == 0, (words, told)
        for command in proposed_commands(told.out):
            parse(command)
            if command[0] == "chat" and command[1] == "runs/dpo" and not asked:
                asked.append(command)
    (chat,) = asked  # is it better? A person says so, without a reward
    monkeypatch.setattr("sys.stdin", io.StringIO("How are you?\n1\n"))
    assert main([*chat, "--max-new-tokens", "4"]) == 0
    assert "win rate" in capsys.readouterr().out
    _learned_what_it_should()
    (python,) = blocks("python")
    capsys.readouterr()
    # The commands above have imported every room: no room's name must replace the public function.
    exec(compile(python, str(README), "exec"), {})
    path, accuracy = capsys.readouterr().out.split()[-2:]
    assert Path(path).is_file()
    assert 0 <= float(accuracy) <= 1
    first = runs.open_run("runs/mine").metrics("eval")[0]
    assert first["loss"] == pytest.approx(1.0, abs=1e-6)  # the README's own loss, where policy equals reference
    promised = re.findall(r"^\| (`.*?) \|", RUN_FOLDER.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(promised) > 8
    for name in re.findall(r"`([\w./]+)`", " ".join(promised)):
        # a finished run has removed its checkpoints, and only runs on images or sounds have media: the table says so
        assert (workplace / "runs" / "dpo" / name).exists() == (name not in ("checkpoints/", "media/")), name


def _learned_what_it_should() -> None:
    """The example's report says that the run learned; with a learning rate of 0, that it did not."""
    for name, least in (("sft", 0.3), ("dpo", 0.3)):
        report = json.loads(Path("runs", name, "report.json").read_text("utf-8"))
        assert report["verdict"]["word"] == "healthy", report["verdict"]
        losses = [m["loss"] for m in report["metrics"] if m["kind"] == "eval"]
        assert losses[-1] < (1 - least) * losses[0]
        assert any(d["check"] == "learning" and d["severity"] == "good" for d in report["diagnoses"])
        assert report["next"].startswith("afzal ")
    assert main(["train", "runs/dpo/run.yaml", "lr=0", "max_steps=2", "out=runs/still", "--debug"]) == 0
    still = json.loads(Path("runs/still/report.json").read_text("utf-8"))
    assert still["verdict"]["word"] == "not healthy"
    assert still["verdict"]["sentence"] == "Nothing was learned: the weights did not move."
    assert "the weights did not move" in Path("runs/still/report.html").read_text("utf-8")
