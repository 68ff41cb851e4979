"""The documentation tells the truth: generated pages are fresh, every Python block runs."""

import re
import runpy
from pathlib import Path

import pytest

from embedloss import list_losses

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks():
    found = []
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        for number, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
            found.append(pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.mark.parametrize("code", blocks())
def test_every_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


def test_generated_pages_are_fresh():
    pages = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    stale = [name for name, text in pages.items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != text]
    assert not stale, f"run `python docs/generate.py`; stale: {stale}"


def test_every_loss_has_a_page_with_a_runnable_example():
    missing = [s.name for s in list_losses() if s.distribution.startswith("embedloss-") and not BLOCK.search(s.doc)]
    assert missing == []
