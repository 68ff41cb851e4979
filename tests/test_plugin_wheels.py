"""Distributions as strangers meet them: real wheels, installed, upgraded and uninstalled in an environment of their own.

The environment is new; what is not ours is linked from the running one, so nothing is downloaded.
"""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
pytest.importorskip("pip")

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = ["core", "cli", *sorted(str(p.parent.relative_to(ROOT)) for p in ROOT.glob("plugins/*/pyproject.toml"))]
pytestmark = pytest.mark.slow

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "{version}"
dependencies = ["{requires}"]
[project.entry-points.embedloss]
{module} = "{module}"
[tool.hatch.build.targets.wheel]
include = ["{module}.py"]
"""
SPEC = """
from embedloss import LossSpec, hookimpl

def spec(name, **more):
    return LossSpec(name=name, target=__name__ + ":Mine", summary="a stranger's", family="strange", formats=["pairs"], **more)
"""
HOOK = """
@hookimpl
def embedloss_register_losses():
    return [spec("{loss}"{more})]
"""
CLASS = """
def __getattr__(name):
    if name != "Mine":
        raise AttributeError(name)
    from embedloss.loss import Loss

    class Mine(Loss):
        def compute(self, emb, labels):
            return (emb.own("anchor") - emb.own("positive")).square().mean()

    Mine.spec = spec("{loss}")
    return Mine
"""


def registers(loss, more=""):
    return SPEC + HOOK.format(loss=loss, more=more) + CLASS.replace("{loss}", loss)


STRANGERS = {
    "stranger-import": "import no_such_module_anywhere\n",
    "stranger-hook": registers("hook-loss").replace("register_losses", "register_loses"),
    "stranger-spec": registers("Bad Name"),
    "stranger-types": registers("typed-loss", ", citation=None"),
    "stranger-takes-ours": registers("mnrl"),
    "stranger-twin-a": registers("twin-loss"),
    "stranger-twin-b": registers("twin-loss"),
    "stranger-slow": "import time; time.sleep(0.8)\n" + registers("slow-loss"),
    "stranger-exit": "import sys; sys.exit(3)\n",
    "stranger-prints": "print('buy my loss')\n" + registers("printing-loss"),
    "stranger-range": "raise AssertionError('must not be imported')\n",
    "stranger-good": registers("good-loss"),
}
REASONS = {
    "stranger-import": "No module named 'no_such_module_anywhere'",
    "stranger-hook": "unknown hook 'embedloss_register_loses'; the hooks are",
    "stranger-spec": "must be lower case with hyphens",
    "stranger-types": "citation of loss 'typed-loss' must be a string, got None",
    "stranger-takes-ours": "the name 'mnrl' is registered by embedloss-ranking as well",
    "stranger-twin-a": "the name 'twin-loss' is registered by stranger-twin-b as well",
    "stranger-twin-b": "the name 'twin-loss' is registered by stranger-twin-a as well",
    "stranger-exit": "SystemExit: 3",
    "stranger-range": "needs embedloss>=99, and this is embedloss 0.",
}
GOOD = {"stranger-slow": "slow-loss", "stranger-prints": "printing-loss", "stranger-good": "good-loss"}


def build(project, out):
    from hatchling.builders.wheel import WheelBuilder

    [wheel] = WheelBuilder(str(project)).build(directory=str(out), versions=["standard"])
    return Path(wheel)


def stranger(folder, name, code, version="1.0"):
    project = folder / f"{name}-{version}-source"
    project.mkdir()
    module = name.replace("-", "_")
    requires = "embedloss>=99" if name == "stranger-range" else "embedloss>=0.1"
    text = PYPROJECT.format(name=name, version=version, module=module, requires=requires)
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    (project / f"{module}.py").write_text(code, encoding="utf-8")
    return build(project, folder)


class Environment:
    def __init__(self, folder):
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        [self.site] = folder.glob("lib/python*/site-packages")
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not re.match(r"_*(editable_*)*(impl_)*embedloss|.*\.pth$|__pycache__|stranger", entry.name):
                (self.site / entry.name).symlink_to(entry)
        self.cwd = folder

    def pip(self, *arguments):
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(self.python)]
        subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True, text=True, cwd=self.cwd)

    def install(self, *wheels):
        self.pip("install", "--no-deps", "--no-index", "--upgrade", *wheels)

    def run(self, *arguments, **more):
        return self.call("-m", "embedloss_cli", *arguments, **more)

    def call(self, *arguments, status=0, **environment):
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "EMBEDLOSS_DISABLE_PLUGINS")}
        done = subprocess.run(
            [str(self.python), *map(str, arguments)],
            env={**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment},
            cwd=self.cwd, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments, **environment):
        return json.loads(self.run(*arguments, "--json", **environment).stdout)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheels")
    return {name: build(ROOT / name, out) for name in DISTRIBUTIONS}


@pytest.fixture(scope="module")
def bare(tmp_path_factory, wheels):
    """Core and command line, no plugin."""
    environment = Environment(tmp_path_factory.mktemp("bare"))
    environment.install(wheels["core"], wheels["cli"])
    return environment


@pytest.fixture(scope="module")
def full(tmp_path_factory, wheels):
    """Core, command line, ranking, and all the strangers."""
    folder = tmp_path_factory.mktemp("strangers")
    environment = Environment(tmp_path_factory.mktemp("full"))
    strangers = [stranger(folder, name, code) for name, code in STRANGERS.items()]
    environment.install(wheels["core"], wheels["cli"], wheels["plugins/ranking"], *strangers)
    return environment


def test_core_alone_says_what_to_install(bare):
    assert bare.run("list").stdout == (
        "No installed loss fits. `embedloss formats` lists formats and labels; pip install 'embedloss[all]'.\n"
    )
    assert bare.run("plugins").stdout == "No plugin is installed. Type: pip install 'embedloss[all]'\n"
    assert "pip install embedloss-ranking" in bare.run("show", "mnrl", status=1).stderr
    assert "pip install 'embedloss[all]'" in bare.run("show", "nothing-like-it", status=1).stderr


def test_each_stranger_is_reported_and_the_rest_goes_on(full):
    found = {plugin["distribution"]: plugin for plugin in full.json("plugins")}
    assert set(found) == {*STRANGERS, "embedloss-ranking"}
    assert {p["version"] for name, p in found.items() if name in STRANGERS} == {"1.0"}
    for name, reason in REASONS.items():
        assert found[name]["status"] == "failed", name
        assert reason in found[name]["reason"], name
        assert found[name]["losses"] == []
    for name, loss in GOOD.items():
        assert (found[name]["status"], found[name]["losses"]) == ("loaded", [loss])
    assert "took" in found["stranger-slow"]["warnings"][0]
    assert "printed" in found["stranger-prints"]["warnings"][0]
    listed = full.run("list")
    assert "buy my loss" not in listed.stdout
    for loss in (*GOOD.values(), "multiple-negatives-ranking"):
        assert loss in listed.stdout
    assert "twin-loss" not in listed.stdout
    told = " ".join(full.run("plugins").stdout.split())
    for name, reason in REASONS.items():
        assert f"{name} 1.0" in told
        assert reason in told
    assert "embedloss-ranking" in full.run("show", "mnrl").stdout  # ours keeps its name
    twin = full.run("show", "twin-loss", status=1)
    assert twin.stderr.startswith("E205")
    assert "stranger-twin-b" in twin.stderr


def test_disabled_ones_are_not_imported(full):
    found = {p["distribution"]: p for p in full.json("plugins", EMBEDLOSS_DISABLE_PLUGINS="stranger_exit, stranger-twin-a")}
    assert found["stranger-exit"]["status"] == "disabled"
    assert (found["stranger-twin-b"]["status"], found["stranger-twin-b"]["losses"]) == ("loaded", ["twin-loss"])


def test_a_good_one_trains_then_is_upgraded_and_uninstalled(full, tmp_path):
    data = write_pairs(tmp_path / "pairs.jsonl")
    out = tmp_path / "run"
    full.run(
        "train", "--model", "static(dimension=16, vocab_size=200)", "--data", data, "--loss", "good-loss + 0.5 * mnrl",
        "--recompute", "--batch-size", "8", "--max-steps", "4", "--out", out,
    )  # fmt: skip
    assert (out / "modules.json").is_file()
    full.install(stranger(tmp_path, "stranger-good", registers("better-loss"), "1.1"))
    [plugin] = [p for p in full.json("plugins") if p["distribution"] == "stranger-good"]
    assert (plugin["version"], plugin["losses"]) == ("1.1", ["better-loss"])
    full.pip("uninstall", "--yes", "stranger-good")
    assert "stranger-good" not in {p["distribution"] for p in full.json("plugins")}
    assert "E201" in full.run("show", "better-loss", status=1).stderr


ALONE = """
import json, os, sys
import torch, transformers
from embedloss import list_losses
import embedloss.loss

for wheel in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork():
        _, status = os.wait()
        assert status == 0, wheel
        continue
    sys.path.insert(0, wheel)
    losses = list_losses()
    for spec in losses:
        spec.load()
    print(json.dumps([[spec.distribution, spec.name] for spec in losses]))
    sys.stdout.flush()
    os._exit(0)
"""


def test_each_plugin_needs_the_core_and_no_other_plugin(bare, wheels, tmp_path):
    plugins = [name for name in DISTRIBUTIONS if name.startswith("plugins/")]
    for name in plugins:
        with zipfile.ZipFile(wheels[name]) as archive:
            archive.extractall(tmp_path / name)
    done = bare.call("-c", ALONE, *(tmp_path / name for name in plugins))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [{distribution for distribution, _ in losses} for losses in found] == [
        {"embedloss-" + name.removeprefix("plugins/")} for name in plugins
    ]
    assert sum(map(len, found)) > 35


TRAIN = """
import sys
from embedloss.training.config import RunConfig
from embedloss.training.run import run_training

config = RunConfig(
    model="static(dimension=16, vocab_size=200)", data=sys.argv[1], loss="mnrl", out=sys.argv[2], batch_size=8, max_steps=4
)
assert run_training(config).steps == 4
"""


def write_pairs(path):
    rows = [{"anchor": f"question {i} about thing {i % 7}", "positive": f"answer {i} for thing {i % 7}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_ranking_alone_trains(wheels, tmp_path):
    """No command line: what `pip install embedloss-ranking` brings."""
    environment = Environment(tmp_path / "environment")
    environment.install(wheels["core"], wheels["plugins/ranking"])
    environment.call("-c", TRAIN, write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "run")
    assert (tmp_path / "run" / "modules.json").is_file()
    assert "No module named embedloss_cli" in environment.run("list", status=1).stderr


def test_the_extra_all_brings_everything(wheels, tmp_path):
    from embedloss import list_losses

    environment = Environment(tmp_path / "environment")
    environment.pip("install", "--no-index", "--find-links", wheels["core"].parent, "embedloss[all]")
    losses = {spec["name"] for spec in environment.json("list")}
    assert losses == {spec.name for spec in list_losses() if spec.distribution.startswith("embedloss-")}
    plugins = environment.json("plugins")
    assert {plugin["status"] for plugin in plugins} == {"loaded"}
    assert {plugin["distribution"] for plugin in plugins} == {
        "embedloss-" + name.removeprefix("plugins/") for name in DISTRIBUTIONS if name.startswith("plugins/")
    }


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_sdist_builds_the_same_wheel(name, wheels, tmp_path):
    from hatchling.builders.sdist import SdistBuilder

    [sdist] = SdistBuilder(str(ROOT / name)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (source / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert {"PKG-INFO", "README.md", "pyproject.toml", "src"} <= {path.name for path in source.iterdir()}
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(build(source, tmp_path / "wheel")) as made, zipfile.ZipFile(wheels[name]) as wanted:
        assert sorted(made.namelist()) == sorted(wanted.namelist())
        assert [made.read(n) for n in made.namelist()] == [wanted.read(n) for n in made.namelist()]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_wheel_has_its_licence_readme_types_and_range(wheels, name):
    with zipfile.ZipFile(wheels[name]) as archive:
        names = archive.namelist()
        [path] = [n for n in names if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(path))
        [licence] = [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert len(metadata.get_payload().strip()) > 100
    assert metadata["Requires-Python"] == ">=3.10"
    assert any(n.endswith("/py.typed") for n in names)
    assert not [n for n in names if "/tests/" in n or n.startswith("tests/")]
    if name != "core":
        assert "embedloss<0.2,>=0.1" in metadata.get_all("Requires-Dist")
