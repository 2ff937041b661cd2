import sys
from pathlib import Path

# Benchmarks are scripts that import their neighbours, as Python lets a script do.
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
