"""Inference engines behind one protocol: transformers in this process (``local``), and servers (``providers``)."""
