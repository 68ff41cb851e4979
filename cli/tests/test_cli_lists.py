import json
import subprocess
import sys

import pytest

from embedloss import list_losses
from embedloss.errors import EXPLANATIONS
from embedloss.formats import FORMATS

HEAVY = ("torch", "transformers", "datasets", "pandas", "numpy", "pyarrow", "sklearn", "scipy", "rich", "huggingface_hub")


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "command", [["list"], ["list", "--json"], ["formats"], ["plugins"], ["explain", "E101"], ["--version"]]
)
def test_no_heavy_import(command):
    code = (
        "import sys\nfrom embedloss_cli.__main__ import run\nstatus = run(sys.argv[1:])\n"
        f"print(status, [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    assert python(code, *command).stderr.strip() == "0 []"


def test_list_names_every_loss_on_a_line_that_fits(run):
    result = run("list")
    assert result.status == 0
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    specs = list_losses()
    assert specs
    for spec in specs:
        assert any(line.strip().split(" ")[0] == spec.name for line in lines)
        assert spec.summary.split()[0] in result.out
    assert f"{len(specs)} loss" in lines[-1]


def test_list_filters(run):
    everything = run("list", "--json").json
    assert [e["name"] for e in everything] == [s.name for s in list_losses()]
    pairs = {e["name"] for e in run("list", "--format", "pairs", "--json").json}
    exact = {e["name"] for e in run("list", "--format", "pairs+score", "--json").json}
    assert exact < pairs
    assert {e["name"] for e in run("list", "--labels", "score", "--model-kind", "bi-encoder", "--json").json} <= pairs
    family = everything[0]["family"]
    assert {e["family"] for e in run("list", "--family", family, "--json").json} == {family}


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--format", "pears", "Formats: single"),
        ("--labels", "nope", "Kinds: none"),
        ("--family", "nope", "Installed:"),
        ("--model-kind", "x", "Kinds: bi-encoder"),
    ],
)
def test_list_refuses_an_unknown_filter(run, option, value, part):
    result = run("list", option, value)
    assert (result.status, result.out) == (1, "")
    assert part in result.err.replace("\n  ", " ")


@pytest.mark.parametrize("spec", list_losses(), ids=lambda s: s.name)
def test_show_every_loss(run, spec):
    result = run("show", spec.name)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(spec.name)
    assert "parameters" in result.out
    for line in result.out.splitlines():
        assert len(line) <= 80


def test_show_as_json_and_by_alias(run):
    found = run("show", "mnrl", "--json").json
    assert found["name"] == "multiple-negatives-ranking"
    assert found["parameters"]["scale"] == 20.0
    assert run("show", "MNRL").out == run("show", "multiple_negatives_ranking").out


def test_show_an_unknown_loss(run):
    result = run("show", "mnlr")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("E201: unknown loss 'mnlr'. Did you mean mnrl")


def test_formats(run):
    text = run("formats").out
    assert max(map(len, text.splitlines())) <= 80
    found = run("formats", "--json").json
    assert [f["name"] for f in found] == list(FORMATS)
    for entry in found:
        assert f"{entry['name']}: " in text
        assert json.loads(entry["example"])


def test_plugins(run):
    found = run("plugins", "--json").json
    assert all(p["status"] == "loaded" for p in found), found
    for plugin in found:
        assert plugin["distribution"] in run("plugins").out


def test_explain(run):
    for code in EXPLANATIONS:
        assert run("explain", code.lower()).out.startswith(f"{code}: {EXPLANATIONS[code].title}")
    assert run("explain", "E101", "--json").json["code"] == "E101"
    result = run("explain", "E109")
    assert (result.status, result.out) == (2, "")
    assert "there is no code 'E109'" in result.err


COMMANDS = [
    "list",
    "show",
    "formats",
    "plugins",
    "explain",
    "check",
    "demo-data",
    "train",
    "evaluate",
    "encode",
    "search",
    "init-static",
]


def test_help_lists_the_commands_in_order(run):
    text = run("--help").out
    places = [text.index(f"│ {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert run().out.strip() == text.strip()  # no arguments: the same


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_and_has_an_example(run, command):
    result = run(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    if command not in ("formats", "plugins"):
        assert f"embedloss {command} " in result.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["lst"], "Did you mean 'list'"),
        (["tarin", "run.yaml"], "Did you mean 'train'"),
        (["check"], "Missing argument 'DATA'"),
        (["list", "--frmat", "pairs"], "--format"),
        (["check", "x.jsonl", "--map", "anchor"], "is not KEY=VALUE"),
        (["check", "x.jsonl", "--map", "a=b", "--map", "a=c"], "given twice"),
        (["search", "m", "q"], "Missing option '--docs'"),
        (["train", "--epochs", "many"], "Invalid value for '--epochs'"),
        (["--plugin"], "--plugin"),
    ],
)
def test_usage_errors_exit_with_2(run, arguments, part):
    result = run(*arguments)
    assert (result.status, result.out) == (2, "")
    assert part in " ".join(result.err.replace("│", " ").split())


def test_version(run):
    assert run("--version").out == "embedloss 0.1.0\n"


def test_module_and_script_are_the_same():
    module = subprocess.run([sys.executable, "-m", "embedloss_cli", "list"], capture_output=True, text=True)
    assert module.returncode == 0
    assert "loss" in module.stdout


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m embedloss_cli list | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stderr == ""
