import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for compare_samples, under every import mode
