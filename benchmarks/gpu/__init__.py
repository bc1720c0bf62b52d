"""All GPU benchmarks in one command: ``python -m benchmarks.gpu --help``."""

import sys
from pathlib import Path

# the machine's Python has no Afzal installed, and must use this checkout in any case
sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))
