"""A probe as the model of an evaluation harness: :mod:`.lm_eval` and :mod:`.lmms_eval`, over :mod:`.asking`."""
