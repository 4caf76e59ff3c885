"""Families in original checkpoint formats, and what they share; no code of a checkpoint is run."""
