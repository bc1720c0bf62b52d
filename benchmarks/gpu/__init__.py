"""Everything that is to be measured on a CUDA GPU, in one command: ``python -m benchmarks.gpu --help``."""

import sys
from pathlib import Path

# the machine's own Python has no Afzal installed, and is to run this tree's in any case
sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))
