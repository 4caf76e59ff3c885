"""What server-backed engines share: client, parsing of replies, tables. ``base.py`` explains how to add an engine."""

from __future__ import annotations

from vlmprobe.engines.serving.answer import Abilities, Answer, Scored, Usage
from vlmprobe.engines.serving.base import ServedEngine, StreamedEngine
from vlmprobe.engines.serving.facts import Facts, Server
from vlmprobe.engines.serving.generation_options import BASIC, Decoding
from vlmprobe.engines.serving.http.client import Client, Limits
from vlmprobe.engines.serving.http.reply import Node
from vlmprobe.engines.serving.rows import Alternative, Row
from vlmprobe.engines.serving.tokens import Tokens
from vlmprobe.engines.serving.value_kind import Meaning

__all__ = [
    "BASIC",
    "Abilities",
    "Alternative",
    "Answer",
    "Client",
    "Decoding",
    "Facts",
    "Limits",
    "Meaning",
    "Node",
    "Row",
    "Scored",
    "ServedEngine",
    "Server",
    "StreamedEngine",
    "Tokens",
    "Usage",
]
