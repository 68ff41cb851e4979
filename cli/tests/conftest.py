import json
import os
from dataclasses import dataclass

import pytest

os.environ.pop("EMBEDLOSS_DISABLE_PLUGINS", None)


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run a command in this process, in an empty folder, on a terminal of 80 columns."""
    from embedloss_cli.__main__ import run as command

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.chdir(tmp_path)

    def go(*arguments):
        capfd.readouterr()
        status = command([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return go


@pytest.fixture
def write(tmp_path):
    def go(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        else:
            text = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
            path.write_text(text, encoding="utf-8")
        return path

    return go
