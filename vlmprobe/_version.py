"""The one place where the name of the distribution and its version stand."""

DISTRIBUTION = "vlm-logit-probe"  # PyPI's vlmprobe is another project
__version__ = "0.2.0"
