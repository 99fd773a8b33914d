"""``zipar``, and ``python -m zipar``: Ctrl-C ends them quietly while modules are still imported, too."""

import sys


def main() -> int:
    """Run the command line of the process; returns the exit code."""
    try:
        from zipar.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
