"""What all tests start from."""

from __future__ import annotations

import signal

# A shell that runs something in the background has it ignore Ctrl-C, and so does everything that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
