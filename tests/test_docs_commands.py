"""Every `embedloss` command of the documentation: its options exist, and on most pages it is run as it stands there.

A page is run in a folder that holds the files it speaks of, small, with tiny random models in place of the named ones.
"""

import contextlib
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import typer.main

from embedloss.testing.models import SENTENCES, tiny_bert, tiny_cross_encoder
from embedloss_cli.__main__ import plugin_files, run
from embedloss_cli.app import build_app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("*/README.md"))]
PAGES += sorted(ROOT.glob("plugins/*/README.md"))
BLOCK = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def commands(page):
    """The arguments of each command, in order."""
    found = []
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in ("", "text", "sh", "bash", "console"):
            lines = [line.strip().removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
            found += [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("embedloss ")]
    return found


WITH_COMMANDS = [page for page in PAGES if page.name != "cli.md" and commands(page)]


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named)
def test_every_option_of_a_page_exists(page):
    group = typer.main.get_command(build_app(with_plugins=False))
    for arguments in commands(page):
        name, *rest = plugin_files(arguments)[0]
        assert name in group.commands, f"embedloss {shlex.join(arguments)}"
        with contextlib.suppress(typer.Exit):  # --help
            group.commands[name].make_context(name, rest)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_bert(folder / "MODEL")
    tiny_cross_encoder(folder / "RERANKER")
    shutil.copytree(folder / "MODEL", folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    return folder


@pytest.fixture
def world(models, tmp_path, monkeypatch):
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    texts = [f"{text} Number {i}." for i in range(2) for text in SENTENCES]
    half = len(texts) // 2
    both = list(zip(texts[:half], texts[half:], strict=True))
    lines(tmp_path / "pairs.jsonl", [{"anchor": a, "positive": b} for a, b in both])
    for name in ("test.jsonl", "dev.jsonl"):
        lines(tmp_path / name, [{"anchor": a + " Really?", "positive": b} for a, b in both[:6]])
    (tmp_path / "intents.csv").write_text("text,label\n" + "".join(f'"{t}",{i % 3}\n' for i, t in enumerate(texts)))
    scored = [{"sentence1": a, "sentence2": b, "score": i % 6} for i, (a, b) in enumerate(both)]
    lines(tmp_path / "scores.jsonl", scored)
    for name in ("sts.jsonl", "sts-dev.jsonl"):
        lines(tmp_path / name, [{**row, "score": row["score"] / 5} for row in scored])
    classes = ["entailment", "neutral", "contradiction"]
    inference = [(both[i // 3][0], texts[-1 - i], classes[i % 3]) for i in range(18)]
    lines(tmp_path / "nli.jsonl", [{"premise": a, "hypothesis": b, "label": c} for a, b, c in inference])
    lines(tmp_path / "tuples.jsonl", [{"anchor": a, "positive": b, "negative": texts[:2]} for a, b in both[3:]])
    lines(tmp_path / "corpus.jsonl", [{"doc_id": str(i), "text": text} for i, text in enumerate(texts)])
    lines(tmp_path / "queries.jsonl", [{"query_id": str(i), "text": f"query {i}"} for i in range(6)])
    lines(tmp_path / "qrels.jsonl", [{"query_id": str(i), "doc_id": str(i), "label": 1} for i in range(6)])
    (tmp_path / "run.yaml").write_text(
        "model: MODEL\ndata: pairs.jsonl\nloss: mnrl\nout: runs/yaml\nmax_steps: 2\nsave_steps: 1\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["docs/index.md", "docs/train.md", "docs/data.md"])
def test_a_page_runs_as_it_stands(page, world, capsys):
    for arguments in commands(ROOT / page):
        needed = "peft" if "--lora" in arguments else "optuna" if arguments[0] == "tune" else None
        if needed and importlib.util.find_spec(needed) is None:
            continue
        out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
        if out is not None and out.is_file():
            out.unlink()  # the next example writes to the same name
        if "--resume" in arguments:  # of a run that was killed after its first checkpoint
            assert run([a for a in arguments if a != "--resume"]) == 0
        assert run(arguments) == 0, f"embedloss {shlex.join(arguments)}\n{capsys.readouterr().err}"
        assert out is None or out.exists()


def test_the_readme_runs_as_it_stands(world):
    for name in ("pairs.jsonl", "test.jsonl"):
        rows = [json.loads(line) for line in (world / name).read_text().splitlines()]
        lines(world / name, [{"question": row["anchor"], "answer": row["positive"]} for row in rows])
    found = commands(ROOT / "README.md")
    assert [arguments[0] for arguments in found] == ["check", "train", "evaluate", "search"]
    for arguments in found:
        assert run(arguments) == 0, shlex.join(arguments)
