"""The pytest surface: options, fixtures and markers of a run on a board.

A test that uses a fixture of this plugin runs on the board; before it the board is alive, in its
standard state and has what the test's markers ask for; after it the kernel log is read, our own
variables are deleted and the standard state is brought back.
"""

pytest_plugins = ["harness.pytest_plugin.options", "harness.pytest_plugin.fixtures"]
