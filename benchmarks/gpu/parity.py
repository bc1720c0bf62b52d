"""Run the tests that need a GPU, and write how many passed, failed and were skipped."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.install import ROOT
from benchmarks.machine import about_run


class Tally:
    """Counts outcomes as pytest reports them."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failed: list[str] = []

    def pytest_configure(self, config: Any) -> None:
        config.addinivalue_line("markers", "gpu: needs a CUDA GPU")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "failed":
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self.counts["failed"] += 1
            self.failed.append(f"{report.nodeid} does not load")


def _folder() -> Path:
    """The folder with the GPU tests alone, if it exists: loading all others takes longer than running these."""
    folder = ROOT / "tests/gpu"
    return folder if folder.is_dir() else ROOT / "tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--tests", default=str(_folder()), help="folder or file of tests")
    options = parser.parse_args()
    tally, began = Tally(), time.perf_counter()
    pytest.main(["-m", "gpu", "--tb", "short", "-p", "no:cacheprovider", options.tests], plugins=[tally])
    about = about_run("benchmarks.gpu.parity", ["afzal", "torch", "transformers"], threads=os.cpu_count() or 1)
    seconds = round(time.perf_counter() - began, 1)
    content = {"about": about, "tests": tally.counts, "failed": tally.failed, "seconds": seconds}
    options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
