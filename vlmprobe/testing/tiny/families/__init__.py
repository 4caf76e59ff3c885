"""Tiny checkpoints, one module for each group of similar families."""
