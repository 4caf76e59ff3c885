"""Single source of the distribution's name, its version, and the versions that it is tested with."""

DISTRIBUTION = "vlm-logit-probe"  # PyPI's vlmprobe is another project
__version__ = "0.2.0"
TESTED = {"transformers": "5.24.0", "torch": "2.14.1"}  # the same as in constraints.txt, which is not installed
