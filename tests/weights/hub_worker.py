"""A process that downloads models: huggingface_hub reads the environment, which is the tests', when it is imported.

One JSON object a line: in, the arguments of `download`, of which `check` is whether to open the model, and
`largest_file` in bytes; out, `path` or `error`, and what was `said`.
"""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shaderfusion.errors import ModelError
from shaderfusion.families import open_model
from shaderfusion.weights.hub import download


@contextmanager
def limited(largest_file: int | None) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that is full."""
    if largest_file is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def main() -> None:
    """Until the input ends."""
    print("{}", flush=True)
    for line in sys.stdin:
        options = json.loads(line)
        largest_file = options.pop("largest_file", None)
        if options.pop("check", False):
            options["check"] = open_model
        said: list[str] = []
        answer: dict[str, object] = {"said": said}
        try:
            with limited(largest_file):
                answer["path"] = str(download(**options, progress=said.append))
        except ModelError as error:
            answer["error"] = str(error)
        except KeyboardInterrupt:
            answer["error"] = "interrupted"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which what starts the tests may have it ignore
    main()
