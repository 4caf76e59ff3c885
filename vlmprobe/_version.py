"""The one place where the name of the distribution, its version, and the versions that it is tested with stand."""

DISTRIBUTION = "vlm-logit-probe"  # PyPI's vlmprobe is another project
__version__ = "0.2.0"
TESTED = {"transformers": "5.24.0", "torch": "2.14.1"}  # as constraints.txt has them, which is not installed
