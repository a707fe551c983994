"""Every test of this project may run on a board: see ``harness/pytest_plugin/``."""

pytest_plugins = ["harness.pytest_plugin"]
