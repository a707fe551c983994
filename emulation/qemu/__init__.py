"""The real stack as a board: its images are built from Debian's packages, QEMU runs them."""
