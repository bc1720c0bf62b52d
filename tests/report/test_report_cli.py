"""``afzal report RUN``."""

import subprocess
import sys

import helpers_report as rr
import typer
from typer.testing import CliRunner

from afzal.cli.report import command


def invoke(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_it_prints_where_the_page_is(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    done = invoke(folder)
    assert done.exit_code == 0
    assert done.output.splitlines()[0] == str(folder / "report.html")
    assert done.output.splitlines()[1].startswith("healthy: ")
    assert done.output.splitlines()[2].startswith("next (is it better? vote blind): afzal chat ")
    assert (folder / "report.html").exists()


def test_strict_exits_with_one_unless_healthy(tmp_path):
    assert invoke(rr.write_run(tmp_path / "good"), "--strict").exit_code == 0
    assert invoke(rr.stopped_run(tmp_path / "stopped"), "--strict").exit_code == 1
    assert invoke(rr.stopped_run(tmp_path / "stopped")).exit_code == 0


def test_the_report_never_imports_torch(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    code = (
        "import sys; from afzal import report; report.build(sys.argv[1]); report.write_card(sys.argv[1]); "
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
