"""``python -m simgd`` is the same as ``simgd``."""

from simgd.cli import main

if __name__ == "__main__":
    main()
