"""A static program that takes system calls on targets without python3."""
