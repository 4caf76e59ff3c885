"""One module or folder for each serving engine, discovered as entry points of ``vlmprobe.engines``."""
