"""The engines behind servers that ship, one file each; they are found as entry points of ``vlmprobe.engines``."""
