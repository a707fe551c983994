"""Truth replay: recorded rows of a real stack, taken again on a board through the harness.

``rows`` reads the recorded groups, ``steps`` turns their words into probe steps, ``needs`` reads
from a row what it found on the board, ``rig`` is the board and its stores, ``state`` brings it
there, ``space`` says how much room writes take, ``compare`` holds the rules by which what was seen
agrees with what was recorded, ``calls`` takes a row of system calls, ``replay`` all rows of a
group, ``results`` is what came of them and ``report`` prints it. The rules are written down in
docs/truth.md.
"""
