"""What the decoder of a model runs, counted where it is no hook: with a hook on a model, prompts run whole."""

from __future__ import annotations

import functools


def counted(probe, monkeypatch):
    """Rows and positions of each run of the first decoder layer: of its class, for with a hook prompts run whole."""
    layer, kind, found = probe.layers[0], type(probe.layers[0]), []
    forward = kind.forward

    @functools.wraps(forward)
    def noted(self, hidden_states, *args, **kwargs):
        if self is layer:
            found.append(tuple(hidden_states.shape[:2]))
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", noted)
    return found
