"""`shaderfusion`, whose files take so many seconds to be written that a test can end it meanwhile.

python slow_writer.py SECONDS COMMAND ...
"""

import sys
import time
from pathlib import Path

from shaderfusion.cli import main


def write_slowly(path: Path, data: bytes) -> None:
    """Half of the file, and after a while the rest."""
    with path.open("wb") as stream:
        stream.write(data[: len(data) // 2])
        stream.flush()
        time.sleep(float(sys.argv[1]))
        stream.write(data[len(data) // 2 :])


if __name__ == "__main__":
    Path.write_bytes = write_slowly  # type: ignore[method-assign,assignment]
    sys.exit(main(sys.argv[2:]))
