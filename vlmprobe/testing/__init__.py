"""What tests of models and adapters need: :mod:`vlmprobe.testing.tiny` builds tiny checkpoints of true architectures."""
