"""Progress is shown where a person watches: in a terminal and in a notebook."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager

import pytest

from vlmprobe.display import progress
from vlmprobe.display.progress import tracking

IPython = pytest.importorskip("IPython")


@pytest.fixture
def notebook(monkeypatch):
    """As in a kernel: what is displayed, and each state of it."""
    import IPython.display

    states = []

    class Handle:
        def update(self, shown):
            states.append(shown.data)

    def display(shown, *, display_id):
        states.append(shown.data)
        return Handle()

    monkeypatch.setattr(progress, "in_jupyter", lambda: True)
    monkeypatch.setattr(progress, "OFTEN", 0)
    monkeypatch.setattr(IPython.display, "display", display)
    return states


@pytest.mark.parametrize("asked", [None, True])
def test_a_bar_in_a_notebook_counts_and_goes_away(notebook, capsys, asked):
    with tracking(asked, 3, "<questions>", "tokens") as done:
        done(10)
        done(20)
    assert len(notebook) == 4
    assert '<progress max="3" value="0"' in notebook[0]
    assert '<progress max="3" value="2"' in notebook[2]
    assert "2 of 3 &lt;questions&gt;, " in notebook[2]
    assert re.search(r"tokens/s, \d+ s left", notebook[2])
    assert notebook[3] == ""
    assert capsys.readouterr() == ("", "")


def test_a_bar_of_unknown_length_has_no_end(notebook):
    def fail():
        with tracking(None, None) as done:
            done(0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert notebook[1].startswith("<progress style=")
    assert notebook[1].endswith("</progress> 1 requests")
    assert notebook[-1] == ""


def test_none_in_a_notebook_that_declines_and_none_in_a_pipe(notebook, monkeypatch, capsys):
    with tracking(False, 3) as done:
        done(1)
    monkeypatch.setattr(progress, "in_jupyter", lambda: False)
    with tracking(None, 3) as done:
        done(1)
    assert notebook == []
    assert capsys.readouterr() == ("", "")


def test_a_kernel_is_told_from_a_terminal(monkeypatch):
    import builtins

    assert not progress.in_jupyter()
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    assert progress.in_jupyter()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not progress.in_jupyter()


def test_rows_of_a_run_are_shown_with_those_that_failed(capsys, monkeypatch):
    from vlmprobe.display import progress

    shown = []

    @contextmanager
    def tracking(wanted, total, what, unit):
        yield lambda units, *, passed=1, note="": shown.append((units, passed, note))

    monkeypatch.setattr(progress, "tracking", tracking)
    with progress.tracking_rows(None, 10) as rows:
        rows.answered()
        rows.skipped()
        rows.skipped()
        rows.failed()
        rows.answered()
        assert rows.left == 5
    assert shown == [(1, 1, ""), (1, 3, "1 failed"), (1, 1, "1 failed")]
