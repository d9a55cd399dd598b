"""Tables as text and markdown, and files that are refused early or written whole."""

from pathlib import Path

import pytest

from shaderfusion.errors import InputError
from shaderfusion.output import Table, require_writable, write_whole

TABLE = Table(("name", "ms"), [("a", "1.5"), ("long name", "12.5")], "<>", "Times")


def test_text() -> None:
    assert TABLE.text() == "Times:\nname         ms\na           1.5\nlong name  12.5"


def test_markdown() -> None:
    assert TABLE.markdown() == "Times:\n\n| name | ms |\n| --- | ---: |\n| a | 1.5 |\n| long name | 12.5 |"


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


def test_write_whole(tmp_path: Path) -> None:
    write_whole("--json", tmp_path / "a", b"old")
    write_whole("--json", tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    with pytest.raises(InputError, match=r"--json \(=.*\) could not be written"):
        write_whole("--json", tmp_path / "none" / "a", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
