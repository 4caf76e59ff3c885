"""A page of the embedded model, without a network."""

from __future__ import annotations

import pytest
from page_client import Page

import vlmprobe


@pytest.fixture(scope="session")
def demo():
    return vlmprobe.load("demo", dtype="float32", device="cpu")


@pytest.fixture
def page(demo):
    with Page(demo) as opened:
        yield opened
