"""What all tests share."""

from __future__ import annotations

import signal

# A shell that starts pytest in the background has it ignore ^C; the boards, shells and servers that
# tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
