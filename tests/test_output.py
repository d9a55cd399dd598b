"""Tables as text and markdown, and files that are refused early or written whole."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shaderfusion.errors import InputError
from shaderfusion.output import Table, progress_bar, require_writable, write_whole

TABLE = Table(("name", "ms"), [("a", "1.5"), ("long name", "12.5")], "<>", "Times")


def run_python(code: str, *args: object) -> str:
    """What another process prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    return subprocess.check_output([sys.executable, "-c", code, *map(str, args)], env=environment, text=True)


def test_text() -> None:
    assert TABLE.text() == "Times:\nname         ms\na           1.5\nlong name  12.5"


def test_markdown() -> None:
    assert TABLE.markdown() == "Times:\n\n| name | ms |\n| --- | ---: |\n| a | 1.5 |\n| long name | 12.5 |"


@pytest.mark.parametrize(("is_terminal", "lines"), [(True, ["0/3", "1/3", "3/3"]), (False, [])])
def test_progress_bar(
    is_terminal: bool, lines: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with progress_bar(3) as draw:
        draw(1)
        draw(3)
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in err.split("\r")[1:]] == lines
    assert out == ""
    if is_terminal:
        assert f" [{'#' * 10}{' ' * 20}] " in err
        assert f" [{'#' * 30}] " in err
        assert err.endswith(" s\n")


def test_require_writable(tmp_path: Path) -> None:
    require_writable("--json", tmp_path / "a.json", ".json", "x.json")
    for path, rule in [
        (tmp_path, "is a folder; name a file in it, such as"),
        (tmp_path / "a", "must end in .json"),
        (tmp_path / "b" / "a.json", "must be in a folder that exists"),
        (tmp_path / f"{'a' * 300}.json", "cannot be a file"),
    ]:
        with pytest.raises(InputError, match=rf"--json \(=.*\) {rule}"):
            require_writable("--json", path, ".json", "x.json")
    assert not list(tmp_path.iterdir())


def test_require_writable_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    require_writable("--json", tmp_path / "a.json", ".json", "x.json")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


@pytest.mark.parametrize("length", [250, 255])
def test_longest_names(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.json".rjust(length, "a")
    require_writable("--json", path, ".json", "x.json")
    write_whole("--json", path, b"new")
    require_writable("--json", path, ".json", "x.json")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(path.name, b"new")]


FORBIDDEN = """
import os, sys
from pathlib import Path
from shaderfusion.errors import InputError
from shaderfusion.output import require_writable
if os.geteuid() == 0:
    os.setuid(65534)
for name in sys.argv[1:]:
    try:
        require_writable("--json", Path(name), ".json", "x.json")
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
def test_folders_and_files_of_others() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are in folders that the other user may not enter
        root = Path(folder)
        root.chmod(0o755)
        closed, sticky = root / "closed", root / "sticky"
        closed.mkdir(mode=0o755)
        sticky.mkdir()
        sticky.chmod(0o1777)
        (sticky / "a.json").touch()
        names = [str(closed / "a.json"), str(sticky / "a.json"), str(sticky / "b.json")]
        assert run_python(FORBIDDEN, *names).splitlines() == [
            f"--json (={names[0]}) must be in a folder that you may write to; {closed} is not",
            f"--json (={names[1]}) must be a file that you may replace; {sticky} lets only its owner do that",
        ]


def test_write_whole(tmp_path: Path) -> None:
    write_whole("--json", tmp_path / "a", b"old")
    write_whole("--json", tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    with pytest.raises(InputError, match=r"--json \(=.*\) could not be written"):
        write_whole("--json", tmp_path / "none" / "a", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


FULL = """
import resource, sys
from pathlib import Path
from shaderfusion.errors import InputError
from shaderfusion.output import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole("--json", Path(sys.argv[1]), bytes(2000))
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of a file's size")
def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    printed = run_python(FULL, tmp_path / "a")
    assert printed == f"--json (={tmp_path}/a) could not be written: File too large; choose another place\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
