"""Normalises the address of a server, and picks the API key for it."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from vlmprobe.errors import MessageError

__all__ = ["address_of", "key_for"]

KEY_VARIABLE = "VLMPROBE_API_KEY"
KEYS_OF_HOSTS = {"api.openai.com": "OPENAI_API_KEY"}  # a key is only sent to the host that it was issued for


def address_of(url: Any) -> str:
    """The address of a server without a trailing slash, or ``/v1``, which every path includes."""
    if not isinstance(url, str):
        raise MessageError(f"A server's address is a string such as 'http://localhost:8000', not {type(url).__name__}.")
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise MessageError(f"This is not the address of a server: {error}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise MessageError("A server's address begins with http:// or https://, such as 'http://localhost:8000'.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise MessageError("A server's address has no user, password, query or fragment: pass a key as api_key=.")
    path = parts.path.rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path.removesuffix("/v1"), "", ""))


def key_for(url: str, given: str | None) -> str | None:
    """The API key for a server: the given one, else the environment's key for its host."""
    host = urlsplit(url).hostname or ""
    key = given if given is not None else os.environ.get(KEYS_OF_HOSTS.get(host, KEY_VARIABLE))
    if not key:
        return None
    if not isinstance(key, str) or not re.fullmatch(r"[\x21-\x7e]+", key):
        raise MessageError("The API key holds characters that no header can carry: check for line breaks and spaces.")
    return key
