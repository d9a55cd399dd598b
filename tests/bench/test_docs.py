"""docs/benchmarks.md is what the committed rows make."""

import json

from benchmarks import make_docs


def test_page_is_up_to_date() -> None:
    remedy = "run `.venv/bin/python -m benchmarks.make_docs`"
    assert make_docs.PAGE.read_text(encoding="utf-8") == make_docs.make_page(), remedy
    for folder, name in make_docs.find_charts():
        assert make_docs.chart_path(folder, name).is_file(), remedy


def test_rows_say_where_they_come_from() -> None:
    for path in make_docs.RESULTS.glob("*/*.json"):
        rows = json.loads(path.read_text(encoding="utf-8"))
        assert rows
        assert len({(row["device"], row["driver"]) for row in rows}) == 1, path
        commits = {row["commit"] for row in rows}
        most = 2 if path.stem == "startup" else 1  # which may be of before and after a change
        assert 1 <= len(commits) <= most, path
        assert not any(row["commit"] == "unknown" for row in rows), path
