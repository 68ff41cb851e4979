"""`embedloss new`: the package it writes has tests that pass, a wheel that builds, and is found once it is installed."""

import json
import os
import re
import subprocess
import sys
import zipfile

import pytest

from embedloss.errors import EmbedlossError
from embedloss_cli.__main__ import run
from embedloss_cli.new import Licence, package

FILES = [
    ".github/workflows/tests.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "src/embedloss_my_new_idea/__init__.py",
    "src/embedloss_my_new_idea/functional.py",
    "src/embedloss_my_new_idea/losses.py",
    "src/embedloss_my_new_idea/plugin.py",
    "src/embedloss_my_new_idea/py.typed",
    "tests/test_my_new_idea.py",
]


def test_the_files_and_their_metadata():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    files = package("My_new-Idea", Licence.mit, 'Ada "A" Lovelace')
    assert list(files) == FILES
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["name"] == "embedloss-my-new-idea"
    assert project["license"] == "MIT"
    assert project["authors"] == [{"name": 'Ada "A" Lovelace'}]
    assert project["entry-points"]["embedloss"] == {"my-new-idea": "embedloss_my_new_idea.plugin"}
    assert project["dependencies"] == ["embedloss>=0.1,<0.2"]
    assert 'Ada "A" Lovelace' in files["LICENSE"]
    assert not [path for path, text in files.items() if re.search("@[A-Z_]+@", text)]
    for path, text in files.items():
        if path.endswith(".py"):
            compile(text, path, "exec")
    assert "class MyNewIdeaLoss(Loss)" in files["src/embedloss_my_new_idea/losses.py"]
    assert "class IdeaLoss(Loss)" in package("idea-loss", Licence.mit)["src/embedloss_idea_loss/losses.py"]


@pytest.mark.parametrize(
    ("licence", "begins"), [(Licence.mit, "MIT License"), (Licence.bsd, "BSD 3-Clause"), (Licence.apache, "Apache License")]
)
def test_licences(licence, begins):
    files = package("my-new-idea", licence)
    assert files["LICENSE"].strip().startswith(begins)
    assert f"Licence: {licence.value}." in files["README.md"]


def test_without_a_licence():
    files = package("my-new-idea", Licence.none)
    assert "LICENSE" not in files
    assert "license-files" not in files["pyproject.toml"]


@pytest.mark.parametrize("name", ["1st", "my/loss", "", "lambda", "ä-loss", "-x", "a--b."])
def test_names_that_cannot_be_are_refused(name):
    with pytest.raises(EmbedlossError) as error:
        package(name, Licence.mit)
    assert error.value.code == "E203"


def test_a_name_that_is_taken_is_refused():
    from embedloss.registry import list_losses

    specs = [spec for spec in list_losses() if spec.aliases]
    if not specs:
        pytest.skip("no loss is installed")
    for name in (specs[0].name, specs[0].aliases[0].upper()):
        with pytest.raises(EmbedlossError, match=specs[0].distribution):
            package(name, Licence.mit)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep me")
    assert run(["new", "my-new-idea", "--out", str(tmp_path)]) == 1
    assert "E402" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_its_tests_pass_its_wheel_builds_and_it_is_found(tmp_path, capsys):
    folder, target = tmp_path / "plugin", tmp_path / "installed"
    assert run(["new", "my-new-idea", "--out", str(folder), "--license", "MIT"]) == 0
    assert "python -m pytest" in capsys.readouterr().out

    def python(*arguments, path):
        environment = {**os.environ, "PYTHONPATH": str(path)}
        done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", path=folder / "src")
    assert int(re.search(r"(\d+) passed", tested).group(1)) > 30
    assert "failed" not in tested

    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".", path="")
    [wheel] = (folder / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "embedloss_my_new_idea/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel), path="")
    listed = json.loads(python("-m", "embedloss_cli", "list", "--json", path=target))
    [entry] = [spec for spec in listed if spec["name"] == "my-new-idea"]
    assert entry["distribution"] == "embedloss-my-new-idea"
    report = json.loads(python("-m", "embedloss_cli", "conformance", "my-new-idea", "--json", path=target))
    assert report[0]["ok"]
    assert "my-new-idea" not in python("-m", "embedloss_cli", "list", path="")
