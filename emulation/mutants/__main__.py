"""``python -m emulation.mutants``: print docs/mutants.md."""

from emulation.mutants.table import document

if __name__ == "__main__":
    print(document(), end="")
