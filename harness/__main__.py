"""``python -m harness`` is ``hil``."""

import sys

from harness.cli import main

sys.exit(main())
