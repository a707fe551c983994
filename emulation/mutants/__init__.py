"""Sabotage: boards with one thing broken each, to prove that the conformance tests notice.

A mutant is the healthy emulator with one method or value of its model replaced in the supervisor
process before the board is made; the healthy code knows nothing of it.  ``python -m emulation -o
mutant=NAME`` runs one, docs/mutants.md lists them, ``python -m tests.mutants`` tries the tests on
all.
"""
