"""The documentation tells the truth: generated pages are fresh, every Python block runs."""

import json
import re
import runpy
from pathlib import Path

import pytest

from embedloss import list_losses

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONTINUED = [DOCS / "data.md"]  # its later blocks go on with what the first made
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks():
    found = []
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        codes = BLOCK.findall(page.read_text(encoding="utf-8"))
        if page in CONTINUED:
            codes = ["\n".join(codes)]
        for number, code in enumerate(codes):
            found.append(pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.mark.parametrize("code", blocks())
def test_every_python_block_runs(code, tmp_path, monkeypatch):
    if "import lightning" in code:
        pytest.importorskip("lightning", reason="lightning is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


def test_generated_pages_are_fresh():
    pages = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    stale = [name for name, text in pages.items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != text]
    assert not stale, f"run `python docs/generate.py`; stale: {stale}"


def test_the_matrix_has_every_loss_and_every_check():
    from embedloss.testing import CHECKS

    found = json.loads((DOCS / "plugins" / "conformance.json").read_text(encoding="utf-8"))
    assert set(found["checks"]) == set(CHECKS)
    assert set(found["losses"]) == {s.name for s in list_losses() if s.distribution.startswith("embedloss-")}
    assert {mark for entry in found["losses"].values() for mark in entry["marks"]} == set("✓x·")


def test_every_loss_has_a_page_with_a_runnable_example():
    missing = [s.name for s in list_losses() if s.distribution.startswith("embedloss-") and not BLOCK.search(s.doc)]
    assert missing == []


def test_every_hook_has_a_section_with_its_arguments():
    import inspect

    from embedloss.hookspecs import Hooks

    page = (DOCS / "plugins" / "hooks.md").read_text(encoding="utf-8")
    hooks = {
        name: list(inspect.signature(f).parameters)[1:] for name, f in vars(Hooks).items() if name.startswith("embedloss_")
    }
    assert len(hooks) >= 3
    sections = dict(re.findall(r"^## `(\w+)\((.*)\)`$", page, re.MULTILINE))
    assert sections == {name: ", ".join(arguments) for name, arguments in hooks.items()}
    for name, arguments in hooks.items():
        section = page.split(f"## `{name}(")[1].split("\n## ")[0]
        assert [a for a in arguments if f"| `{a}` |" not in section] == []


@pytest.mark.slow
def test_the_file_of_the_tutorial_is_listed_conforms_and_trains(tmp_path):
    import os
    import subprocess
    import sys

    code = BLOCK.findall((DOCS / "plugins" / "tutorial.md").read_text(encoding="utf-8"))[0]
    (tmp_path / "my_loss.py").write_text(code, encoding="utf-8")
    rows = [{"anchor": f"question {i} about thing {i % 7}", "positive": f"answer {i} for thing {i % 7}"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(*arguments):
        command = [sys.executable, "-m", "embedloss_cli", "--plugin", "./my_loss.py", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "my-loss" in run("list", "--family", "mine")
    [report] = json.loads(run("conformance", "my-loss", "--json"))
    assert report["ok"]
    run(
        "train", "--loss", "matryoshka(my-loss, dims=[16, 8])", "--model", "static(dimension=16, vocab_size=200)",
        "--data", "pairs.jsonl", "--batch-size", "8", "--max-steps", "4", "--recompute", "--gather", "--out", "run",
    )  # fmt: skip
    assert (tmp_path / "run" / "modules.json").is_file()
