"""Tiny checkpoints, one module for families that are built alike."""
