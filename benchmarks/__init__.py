"""Measurements; see docs/benchmarks.md."""

import sys
from pathlib import Path

# The Kafka broker is the one of the tests, whose folder is no package.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
