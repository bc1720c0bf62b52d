"""``python -m afzal`` is ``afzal``."""

import sys

from afzal.cli import main

sys.exit(main())
