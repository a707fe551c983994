"""``hil check``: walk from the cable up and stop being green where the board does."""
