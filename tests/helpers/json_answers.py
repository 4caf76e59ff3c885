"""Answers of given tokens, for the tests of what is read from the text of answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from analysis_cases import random_table

from vlmprobe.results.result import Result


def answer(*tokens, text=None, end=True, **changed):
    """An answer of these tokens with random numbers."""
    given = [*tokens, "<end>"] if end else list(tokens)
    kinds = ["text"] * len(tokens) + ["special"] * end
    table = replace(random_table(7, len(given), tokens=given, kinds=kinds, keep=False), **changed)
    return Result("".join(tokens) if text is None else text, None, table, np.arange(3), {})
