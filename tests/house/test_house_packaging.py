"""The installed package: metadata without pins, every file, documented extras; and issue forms."""

from __future__ import annotations

import ast
import getpass
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import afzal
from afzal import cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "afzal"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def package_files() -> set[str]:
    files = (p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(PACKAGE.parent)) for p in files}


def test_dependencies_have_lower_bounds_and_no_pins():
    every = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    odd = [
        line
        for line in every
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z,]+\])?>=[0-9.]+(; sys_platform != 'win32')?", line)
    ]
    assert not odd


def test_imports_of_the_package_are_dependencies_or_extras():
    names = {re.split(r"[\[>]", line)[0].lower().replace("-", "_") for line in PROJECT["dependencies"]}
    optional = {re.split(r"[\[>]", line)[0].lower().replace("-", "_") for lines in EXTRAS.values() for line in lines}
    of_others = {"triton", "pyarrow", "tokenizers", "markupsafe", "pydantic_core"}  # installed by dependencies
    of_others |= {"pandas", "matplotlib"}  # only if the user passes, or asks for, one of its objects
    modules = {"yaml": "pyyaml", "PIL": "pillow", "markdown_it": "markdown_it_py"}
    imported = {name.split(".")[0] for file in PACKAGE.rglob("*.py") for name in imports(file)} - {"afzal"}
    outside = {modules.get(n, n) for n in imported - set(sys.stdlib_module_names)}
    assert not outside - names - optional - of_others, "an import that nothing installs"


def imports(file: Path) -> set[str]:
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    nodes = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    absolute = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    return {*absolute, *(alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names)}


def test_no_file_of_the_package_is_left_out_of_the_wheel():
    assert (PACKAGE / "py.typed").is_file()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert build == {"wheel": {"packages": ["src/afzal"]}}, "includes and excludes can lose files: test them"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no repository: what hatchling leaves out follows .gitignore")
    names = "\n".join(f"src/{name}" for name in sorted(package_files()))
    ignored = subprocess.run(["git", "check-ignore", "--stdin"], cwd=ROOT, input=names, text=True, capture_output=True)
    assert not ignored.stdout, "files that .gitignore keeps out of the wheel"


def test_files_that_are_read_at_run_time_exist():
    named = set()
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        named |= set(re.findall(r"[\"']([\w-]+\.(?:html\.j2|css|js|html))[\"']", text))
    there = {Path(name).name for name in package_files()}
    assert named & there, "the pattern finds nothing"
    made = {"report.html", "compare.html", "sweep.html"}
    assert not {name for name in named - there - made if name.endswith((".j2", ".css", ".js"))}


def test_the_command_is_a_function():
    assert PROJECT["scripts"] == {"afzal": "afzal.cli:main"}
    assert callable(cli.main)


def test_every_extra_is_documented_with_what_it_brings_and_no_other_is_named():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z]+)` \| ([^|]+) \|", page, re.MULTILINE))
    assert set(rows) == set(EXTRAS)
    for extra in EXTRAS.keys() - {"dev"}:
        brings = {re.split(r"[\[>]", line)[0] for line in EXTRAS[extra]}
        assert brings == {part.strip() for part in rows[extra].split(",")}, extra
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    for file in sources:
        for group in re.findall(r"(?:afzal|'\.)\[([a-z,]+)\]'", file.read_text(encoding="utf-8")):
            assert set(group.split(",")) <= set(EXTRAS), f"{file.name} names an extra that there is not"


def test_the_version_is_stated_once_and_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == afzal.__version__
    assert cited["license"] == PROJECT["license"]
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", afzal.__version__)


def test_forms_for_issues_can_be_read_and_ask_for_the_environment():
    forms = {f.name: yaml.safe_load(f.read_text()) for f in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")}
    assert {"bug.yml", "numbers.yml", "idea.yml", "config.yml"} <= set(forms)
    for name in set(forms) - {"config.yml"}:
        assert {"name", "description", "body"} <= forms[name].keys()
        ids = [part["id"] for part in forms[name]["body"]]
        assert len(ids) == len(set(ids))
    for name in ("bug.yml", "numbers.yml"):
        assert any("afzal env" in part["attributes"]["label"] for part in forms[name]["body"])


def test_what_a_bug_report_shows_names_nobody(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    for arguments in (["env"], ["env", "--json"]):
        assert cli.main(arguments) == 0
        shown = capsys.readouterr().out
        secrets = ["hf_secret", "0123456789abcdef", str(Path.home()) + "/", str(ROOT), sys.prefix, platform.node()]
        assert not [s for s in secrets if len(s) > 3 and s in shown]
        assert getpass.getuser() not in shown.replace("root", "root " * (getpass.getuser() != "root"))
        assert afzal.__version__ in shown
        assert "extras" in shown


def test_the_shell_completes_verbs_methods_and_flags():
    def completed(words: str, place: int) -> list[str]:
        variables = {"COMP_WORDS": words, "COMP_CWORD": str(place), "_AFZAL_COMPLETE": "complete_bash"}
        command = [sys.executable, "-m", "afzal"]
        environment = {"PATH": "", "PYTHONPATH": str(ROOT / "src"), **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert completed("afzal tra", 1) == ["train"]
    assert completed("afzal check --ag", 2) == ["--against"]
    assert completed("afzal train dpo --be", 3) == ["--beta"]


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file_and_the_wheel_runs(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"
    kept = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.egg-info", "dist", "build")
    shutil.copytree(ROOT, source, ignore=kept)
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], capture_output=True, text=True
    )
    if built.returncode and "hatchling" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("hatchling cannot be had here")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("afzal-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("afzal/")} == package_files()
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    (tmp_path / "p.jsonl").write_text('{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}\n' * 2)
    for arguments in (["--help"], ["check", "p.jsonl"], ["demo", "--quick", "--out", "demo"]):
        command, variables = [sys.executable, "-m", "afzal", *arguments], {"PYTHONPATH": str(target), "PATH": ""}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
    assert (tmp_path / "demo" / "dpo" / "report.html").is_file()
