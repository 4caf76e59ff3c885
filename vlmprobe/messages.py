"""The former place of :mod:`vlmprobe.inputs.messages`; it stays until 1.0."""

import sys

from vlmprobe.inputs import messages

sys.modules[__name__] = messages
