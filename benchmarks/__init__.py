"""Benchmarks of vlmprobe against common alternatives: ``python -m benchmarks --help``."""
