"""Tests of the faults that were seen once: what they say now, and what they said before."""
