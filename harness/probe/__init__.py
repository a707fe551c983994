"""Target probe: raw system calls on the board, with descriptors kept open between steps."""
