"""One table at the end of a run: which check of parity with sentence-transformers each loss passed.

A test says what it showed by `record_property("parity", ("triplet", "value float64"))`, as often as it likes. Set
EMBEDLOSS_PARITY_TABLE to a file name to have the table written there as well.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

CHECKS = ["value float64", "gradient float64", "value float32", "gradient float32", "edges", "differs on purpose"]

_counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])  # (loss, check) -> [passed, failed]


def pytest_runtest_logreport(report):
    if report.when != "call" or report.skipped:
        return
    for name, value in report.user_properties:
        if name == "parity":
            loss, check = value
            _counts[loss, check][report.failed] += 1


def parity_table() -> str:
    losses = sorted({loss for loss, _ in _counts})
    checks = CHECKS + sorted({check for _, check in _counts} - set(CHECKS))

    def cell(loss: str, check: str) -> str:
        if (loss, check) not in _counts:
            return "-"
        passed, failed = _counts[loss, check]
        return f"{failed} of {passed + failed} FAILED" if failed else f"{passed} passed"

    rows = [["loss", *checks], *([loss, *(cell(loss, check) for check in checks)] for loss in losses)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines) + "\n"


def pytest_terminal_summary(terminalreporter):
    if not _counts:
        return
    terminalreporter.section("parity with sentence-transformers")
    terminalreporter.write(parity_table())
    path = os.environ.get("EMBEDLOSS_PARITY_TABLE")
    if path:
        Path(path).write_text(parity_table(), encoding="utf-8")
