"""The former place of :mod:`vlmprobe.results.result`; it stays until 1.0."""

import sys

from vlmprobe.results import result

sys.modules[__name__] = result
