"""LightLLM, behind its server."""
