"""Entry point of the command: nothing is imported before an interrupt can be answered."""

import sys


def main() -> None:
    """Runs the command line."""
    try:
        from onnxport.cli.commands import main as run
    except KeyboardInterrupt:
        sys.stderr.write("onnxport: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
