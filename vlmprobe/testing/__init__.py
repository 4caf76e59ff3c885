"""What tests of models and adapters need: :mod:`vlmprobe.testing.tiny` builds checkpoints of true architectures."""
