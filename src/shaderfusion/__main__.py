"""`python -m shaderfusion`, the same as `shaderfusion`."""

import sys

from shaderfusion.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
