"""The test plan names tests that exist, for every number."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_number_of_the_plan_has_its_tests():
    written = "".join(path.read_text() for path in HERE.parent.rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)\(", written))
    rows = re.findall(r"^\| (\d+) \|.*$", (HERE / "README.md").read_text(), re.M)
    lines = [line for line in (HERE / "README.md").read_text().splitlines() if "`test_" in line]
    assert [int(number) for number in rows] == list(range(1, 14))
    for number, line in zip(rows, lines[1:], strict=True):
        named = set(re.findall(r"`(test_\w+)`", line))
        assert named and not named - existing, f"{number}: {sorted(named - existing)}"
