"""The conformance checks, one small function each, by theme. Each compares a probe with an independent computation."""

from __future__ import annotations

from vlmprobe.testing.conformance import (
    batches,
    candidates,
    conversations,
    current_model,
    images,
    meaning,
    prefixes,
    rows,
    safety,
)
from vlmprobe.testing.conformance.check import Check

__all__ = ["ALL", "Check"]

ALL: tuple[Check, ...] = (
    rows.captured_rows,
    rows.teacher_forced_rows,
    meaning.own_loss,
    images.image_matters,
    images.image_positions,
    candidates.candidate_ids,
    batches.batch_is_single,
    candidates.shared_prefix,
    meaning.raw_numbers,
    meaning.emitted_tokens,
    rows.selected_rows,
    rows.last_layer,
    safety.errors,
    safety.no_trace,
    safety.threads,
    current_model.other_head,
    current_model.fresh_state,
    current_model.cache_of_config,
    current_model.processors_of_caller,
    conversations.text_before_image,
    conversations.system_message,
    conversations.two_turns,
    conversations.rope_switch,
    prefixes.shared_beginning,
)
