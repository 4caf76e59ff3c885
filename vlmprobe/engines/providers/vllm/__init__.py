"""vLLM: behind its server, and in this process."""
