"""The former place of :mod:`vlmprobe.display.plots.choices`; it stays until 1.0."""

import sys

from vlmprobe.display.plots import choices

sys.modules[__name__] = choices
