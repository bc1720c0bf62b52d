"""Start-up: the light rooms leave the heavy packages unloaded, so that help, checks and reports start immediately."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "afzal"
LIGHT_ROOMS = [
    "",
    "errors",
    "records",
    "folders",
    "stats",
    "config",
    "runs",
    "data",
    "quality",
    "report",
    "judge",
    "web",
    "cli",
]
HEAVY = ["torch", "transformers", "datasets", "pyarrow", "pandas", "peft", "safetensors", "matplotlib", "sklearn"]


def loaded_by(statement: str) -> list[str]:
    """The heavy packages that a fresh interpreter has loaded after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow  # the test below shows whether any does, this one which
@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_importing_a_light_room_loads_nothing_heavy(room):
    if room and not (SOURCE / f"{room}.py").exists() and not (SOURCE / room / "__init__.py").exists():
        pytest.skip(f"there is no room {room}")
    assert loaded_by(f"import afzal.{room}" if room else "import afzal") == []


def test_every_module_of_a_light_room_loads_nothing_heavy():
    modules = [
        ".".join(("afzal", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for room in LIGHT_ROOMS
        if room
        for path in sorted(SOURCE.glob(f"{room}.py")) + sorted((SOURCE / room).rglob("*.py"))
    ]
    assert len(modules) > 10
    assert loaded_by(f"import importlib\nfor m in {modules!r}: importlib.import_module(m)") == []


def test_help_and_listing_load_nothing_heavy(tmp_path):
    """In sequence in one process: what one of them loads stays loaded."""
    lines = (["--help"], ["runs", str(tmp_path)], ["env"], ["train", "--help"])
    assert loaded_by(f"from afzal.cli import main\nfor args in {lines!r}: assert main(args) == 0, args") == []


def test_the_probe_sees_a_heavy_package():
    assert loaded_by("import safetensors") == ["safetensors"]
