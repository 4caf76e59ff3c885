"""The recipe of the embedded model: scenes in batches, training, evaluation, and its card."""
