"""Families in original checkpoint formats, and their shared code; no code of a checkpoint is run."""
