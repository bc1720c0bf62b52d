"""The documentation site: the generator's input, and the pages in a browser without a network."""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers_next_steps import parse

from afzal import config, health

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The script that `make site` runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "website"))
        import build

        return build


@pytest.fixture(scope="module")
def written(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "source"
    build.write(folder)
    return folder


def test_every_link_leads_to_a_file_of_the_site(build: ModuleType, written: Path):
    broken = []
    for page in written.rglob("*.md"):
        said: list[str] = []
        build.outside_code(page.read_text("utf-8"), lambda line, said=said: said.append(line) or line)
        for target in _LINK.findall(re.sub(r"`[^`]*`", "", "\n".join(said))):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(written)}: {target}")
    assert broken == []
    assert (written / "source" / "src" / "afzal" / "objectives" / "kl.py.md").is_file()  # that docs/ links to
    assert "](../frontier.svg)" in (written / "source" / "about.md").read_text("utf-8")  # HTML in the README


def test_every_page_is_in_the_navigation_once(build: ModuleType):
    named = [f"{name}.md" for names in build.CHAPTERS.values() for name in names]
    made = {"methods/index.md", "settings.md"}
    there = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert sorted(named) == sorted(there | made)


def test_a_method_has_a_page_with_its_settings_and_paper(written: Path):
    for method in config.METHODS.values():
        page = (written / "methods" / f"{method.name}.md").read_text("utf-8")
        for key in set(method.settings.model_fields) - {"method"}:
            assert f"| `{key}` |" in page, (method.name, key)
        assert method.paper is None or method.paper.arxiv in page
    index = (written / "settings.md").read_text("utf-8")
    assert "| `beta` |" in index
    assert index.index("| `adapter` |") < index.index("| `warmup` |")


def test_a_link_that_leads_nowhere_stays_for_the_generator_to_refuse(build: ModuleType):
    assert build.resolved("../src/afzal/nowhere.py", "docs/cli.md") is None
    assert build.resolved("../../elsewhere", "docs/cli.md") is None
    assert build.place("README.md") == "source/about.md"
    assert posixpath.dirname(build.place("src/afzal/objectives")) == "source/src/afzal/objectives"


def test_the_page_on_curves_names_every_check():
    page = (ROOT / "docs" / "curves.md").read_text("utf-8")
    table = re.findall(r"^\| ([\w -]+) \| [a-z].*\|$", page.partition("## The checks")[2], flags=re.MULTILINE)
    assert table[1:] == list(health.CHECKS)
    for picture in re.findall(r"\]\((curves/[^)]+)\)", page):
        assert (ROOT / "docs" / picture).is_file()


@pytest.mark.parametrize(
    "line", re.findall(r"^ +afzal (.*)$", (ROOT / "docs/start.md").read_text("utf-8"), re.MULTILINE)
)
def test_the_commands_of_the_five_minutes_are_understood(line: str):
    import shlex

    parse(shlex.split(line))


# --- built ------------------------------------------------------------------------------------------------------------


def python() -> str | None:
    """A Python with the generator installed: this one, or that of `make site`."""
    own = ROOT / ".venv-docs" / "bin" / "python"
    for candidate in (sys.executable, str(own)):
        if Path(candidate).exists():
            result = subprocess.run(
                [candidate, "-c", "import sphinx, myst_parser, furo"], capture_output=True, check=False
            )
            if result.returncode == 0:
                return candidate
    return None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "site"
    done = made(ROOT, out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def made(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    generator = python()
    if generator is None:
        pytest.skip("the generator is not installed: make site")
    words = [generator, str(root / "website" / "build.py"), str(out)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_builds_without_a_warning_and_loads_nothing_from_elsewhere(built: Path):
    assert (built / "methods" / "dpo.html").is_file()
    for page in built.rglob("*"):
        if page.suffix == ".html":
            text = page.read_text("utf-8")
            loaded = re.findall(r"<(?:script|img|link|iframe|source)[^>]*?(?:src|href)=\"((?:https?:)?//[^\"]+)", text)
            assert loaded == [], page
        elif page.suffix == ".css":
            assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", page.read_text("utf-8")), page


@pytest.mark.slow
def test_a_broken_link_is_an_error(tmp_path: Path):
    for name in ("docs", "website", "src", "benchmarks", "examples", "tests"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path / "copy" / file.name)
    page = tmp_path / "copy" / "docs" / "chat.md"
    page.write_text(page.read_text("utf-8") + "\n[gone](nowhere.md)\n\n[lost](cli.md#no-such-heading)\n", "utf-8")
    done = made(tmp_path / "copy", tmp_path / "out")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "no-such-heading" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_searched_from_the_disk_on_a_phone_without_a_network(built: Path, scheme: str):
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, offline=True)
        page, asked, faults = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((built / "search.html").as_uri() + "?q=tokenizer")
        page.wait_for_selector("ul.search li a", timeout=30_000)
        assert page.locator("ul.search li").count() > 3
        for name in ("index", "start", "choosing", "curves", "objectives", "methods/dpo", "settings"):
            page.goto((built / f"{name}.html").as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, name
            light = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (light == "rgb(255, 255, 255)") == (scheme == "light"), name
        browser.close()
    assert faults == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
