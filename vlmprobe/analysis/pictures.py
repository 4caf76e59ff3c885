"""The former place of :mod:`vlmprobe.analysis.image_variants`; it stays until 1.0."""

import sys

from vlmprobe.analysis import image_variants

sys.modules[__name__] = image_variants
