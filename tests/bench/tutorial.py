"""Follow docs/plugins/tutorial.md as a new user would, in a fresh environment, and say how long each command took.

    python tests/bench/tutorial.py ENVIRONMENT --wheels FOLDER [--folder WHERE]

ENVIRONMENT is a virtual environment with pip and nothing else; FOLDER holds the wheels of the distributions, which stand for a
package index. Blocks of commands are typed line by line, the first Python block is saved as the page says, the others are run.
`nox -s tutorial` makes both and calls this.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "plugins" / "tutorial.md"
BLOCK = re.compile(r"^( *)```(text|python)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """What to type, in order; a Python block is a here-document for the interpreter, the first one the file `my_loss.py`."""
    found: list[str] = []
    files = iter(["cat > my_loss.py"])
    for _, language, text in BLOCK.findall(page):
        text = textwrap.dedent(text)
        if language == "python":
            found.append(f"{next(files, 'python -')} <<'END'\n{text}END")
        else:
            found += text.replace("\\\n", " ").splitlines()
    return [re.sub(r"  +", " ", line) if "\n" not in line else line for line in found if line.strip()]


def main() -> None:
    """Type them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{given.environment.resolve() / 'bin'}{os.pathsep}{environment['PATH']}"
    links = [str(given.wheels.resolve()), *environment.get("PIP_FIND_LINKS", "").split()]
    environment |= {"PIP_FIND_LINKS": " ".join(links), "PIP_QUIET": "1", "HF_HUB_OFFLINE": "1"}
    total = 0.0
    for command in commands(PAGE.read_text(encoding="utf-8")):
        if command.startswith("cd "):
            folder = folder / command[3:]
            continue
        begin = time.monotonic()
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - begin
        total += seconds
        print(f"{seconds:7.1f} s {total / 60:6.2f} min  {command.splitlines()[0][:100]}", flush=True)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n")
            sys.exit(f"exit status {done.returncode}: {command}")


if __name__ == "__main__":
    main()
