"""``python -m harness`` is ``hil``."""

import sys

from harness.cli.main import main

sys.exit(main())
