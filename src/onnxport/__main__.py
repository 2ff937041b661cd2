"""Entry point of the command: nothing is imported before an interrupt can be answered."""

import os
import sys


def main() -> None:
    """Runs the command line."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's wide tensors in pages of 2 MB, as numpy's: made in a third of the time
    try:
        from onnxport.cli.commands import main as run
    except KeyboardInterrupt:
        sys.stderr.write("onnxport: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
