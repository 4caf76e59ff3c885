"""``python -m vlmprobe`` is the ``vlmprobe`` command."""

from vlmprobe.cli import main

if __name__ == "__main__":
    main()
