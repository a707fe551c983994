"""Every test of this project may run on a board: see ``harness/pytest_plugin.py``."""

pytest_plugins = ["harness.pytest_plugin"]
