"""Training code of the embedded model: batches of scenes, training, evaluation, and the model card."""
