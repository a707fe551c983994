"""Instruments: what a test reads and does on a board, through a shell and a probe only."""
