"""The links to a board: SSH and serial, both offering :class:`harness.shell.Shell`."""
