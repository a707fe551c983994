"""Truth replay: recorded rows of a real stack, taken again on a board through the harness.

``rows`` reads the recorded groups, ``steps`` turns their words into probe steps, ``needs`` reads
from a row what it found on the board, ``state`` brings the board there, ``compare`` holds the
rules by which what was seen agrees with what was recorded, ``replay`` runs the groups and
``report`` prints. The rules are written down in docs/truth.md.
"""
