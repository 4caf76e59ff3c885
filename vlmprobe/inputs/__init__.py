"""Inputs: messages, images and chat templates, parsed and validated before anything runs."""
