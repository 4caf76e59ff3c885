"""Tests against a real serving engine, and what records it."""
