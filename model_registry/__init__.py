"""The adapters that ship with vlmprobe: one module or package per family, found through entry points."""
