"""The ``vlmprobe`` command, and ``python -m vlmprobe``."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C at any moment, also while modules are imported, is one line and exit code 130."""
    try:
        from vlmprobe.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the process shuts down would show a traceback


if __name__ == "__main__":
    main()
