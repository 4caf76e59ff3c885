"""One module or folder for each serving engine; they are found as entry points of ``vlmprobe.engines``."""
