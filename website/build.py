"""Build the documentation as a site, from the repository's Markdown and from the code.

    python website/build.py site        # what `make site` runs

The pages of `docs/` are copied into a temporary folder, with pages that :mod:`pages` generates from the code. Links
such as `../src/afzal/objectives/kl.py` work in the repository; here those files become pages too, so that every link
works without a network. Sphinx builds the folder; a warning or a broken link is an error.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import pages  # noqa: E402

CHAPTERS: dict[str, tuple[str, ...]] = {
    "Start": ("start", "choosing", "curves", "install", "examples", "guide", "import"),
    "Data": ("formats", "audit", "tokens", "media", "tasks"),
    "Training": (
        *("objectives", "rewards", "inverse-rl", "adapters", "few-shot", "iterate", "principles", "run-folder"),
        *("resuming", "trackers", "scale", "devices", "gpu"),
    ),
    "Judging": ("judges", "debate", "compare", "sweep", "chat", "board", "servers"),
    "People": ("annotate", "annotators", "asking"),
    "Reference": ("methods/index", "cli", "settings", "python", "maths", "lab", "design", "files"),
}
"""The navigation. A page of `docs/` that is in no chapter causes a Sphinx warning, and therefore an error."""

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_PICTURE = re.compile(
    r'<img src="([^"]+)"[^>]* alt="([^"]+)">'
)  # HTML because of its width; Sphinx copies only Markdown images
_LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".toml": "toml", ".j2": "text", ".txt": "text"}
_READMES = ("README.md", "benchmarks/README.md", "examples/README.md")
_METHOD = re.compile(r"(?<![\[`\w])`(\w+)`(?![\]`\w])")


def build(out: Path) -> int:
    """Build the site into ``out``, which is emptied first; returns Sphinx's exit code."""
    shutil.rmtree(out, ignore_errors=True)
    with TemporaryDirectory() as folder:
        source = Path(folder, "source")
        write(source)
        conf = str(Path(__file__).parent)
        options = ["-W", "--keep-going", "-q", "-E", "-j", "1", "-c", conf, "-d", f"{folder}/trees", "-b", "html"]
        code = subprocess.run([sys.executable, "-m", "sphinx", *options, str(source), str(out)], check=False).returncode
    for unused in (".buildinfo", "objects.inv"):
        (out / unused).unlink(missing_ok=True)
    return code


def write(folder: Path) -> None:
    """Write Sphinx's input folder."""
    shutil.copytree(ROOT / "docs", folder)
    for name, text in pages.pages().items():
        _put(folder / name, text)
    waiting = sorted(f"docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in (ROOT / "docs").rglob("*.md"))
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        text, linked = rewritten(path)
        _put(folder / place(path), text)
        for other in linked:
            if other in seen:
                continue
            seen.add(other)
            if other.endswith(".md"):
                waiting.append(other)
            elif not other.startswith("docs/"):
                _copy(other, folder / place(other))
    index = folder / "index.md"
    index.write_text(index.read_text("utf-8") + _navigation(CHAPTERS), encoding="utf-8")


def _navigation(chapters: dict[str, tuple[str, ...]]) -> str:
    said = ""
    for caption, names in chapters.items():
        said += "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(names) + "\n```\n"
    return said


def rewritten(path: str) -> tuple[str, list[str]]:
    """A Markdown file of the repository with its links changed to those of the site, and the files that it links to."""
    here, linked = place(path), []

    def link(match: re.Match[str]) -> str:
        target = resolved(match[1], path)
        if target is None:
            return match[0]  # a broken link: Sphinx reports it
        linked.append(target)
        return posixpath.relpath(place(target), posixpath.dirname(here) or ".") + (match[2] or "")

    text = (ROOT / path).read_text("utf-8")
    if path == "docs/choosing.md":
        known = {name: f"methods/{name}.md" for name in pages.METHODS}
        text = outside_code(text, lambda line: _METHOD.sub(lambda m: _named(m, known), line))
    text = outside_code(text, lambda line: _PICTURE.sub(r"![\2](\1)", line))
    text = outside_code(text, lambda line: _LINK.sub(link, line) if "methods/" not in line else line)
    orphan = "" if path.startswith("docs/") else "---\norphan: true\n---\n\n"
    return orphan + text, linked


def _named(match: re.Match[str], known: dict[str, str]) -> str:
    return f"[{match[0]}]({known[match[1]]})" if match[1] in known else match[0]


def resolved(target: str, source: str) -> str | None:
    """The target of a link as a path below the repository; None if it does not exist."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def place(path: str) -> str:
    """The path of a repository file or folder in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"source/{path}/contents.md"
    if path in _READMES:
        return f"source/{path.removesuffix('README.md')}about.md"
    return f"source/{path}.md" if _language(path) else f"source/{path}"


def _language(path: str) -> str:
    return "text" if Path(path).suffix == "" else _LANGUAGES.get(Path(path).suffix, "")


def _copy(path: str, target: Path) -> None:
    """Copy a folder as a list, code as a page, and anything else unchanged."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(p.name for p in file.iterdir() if p.name != "__pycache__")
        _put(target, "\n".join(["---", "orphan: true", "---", "", f"# {path}", "", *(f"- `{n}`" for n in names), ""]))
    elif language := _language(path):
        code = file.read_text("utf-8").rstrip()
        _put(target, f"---\norphan: true\n---\n\n# {path}\n\n``````{language}\n{code}\n``````\n")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with ``change`` applied to every line outside fenced code."""
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        mark = re.match(r"\s*(`{3,})", line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
            lines.append(line)
        else:
            lines.append(line if fence else change(line))
    return "\n".join(lines)


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(words: Iterable[str]) -> int:
    """Run the command line."""
    (out,) = words
    return build(Path(out))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
