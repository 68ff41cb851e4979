import subprocess
import sys

import pytest

from embedloss.errors import EmbedlossError
from embedloss.model_names import check_model_name


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    for name in ("modules.json", "config.json"):
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).write_text("{}")


@pytest.mark.parametrize("name", ["mod", "con", "./mod", "bert-base-uncased", "owner/name", "empty/name"])
def test_folders_of_models_and_ids_of_the_hub_pass(name):
    check_model_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file.txt", "is a file; give the folder"),
        ("empty", "holds neither modules.json nor config.json"),
        (".", "holds neither"),
        ("./gone", "does not exist"),
        ("~/gone-for-good", "does not exist"),
        ("/gone", "does not exist"),
        ("a/b/c", "does not exist"),
    ],
)
def test_others_are_refused(name, said):
    with pytest.raises(EmbedlossError, match=said) as error:
        check_model_name(name)
    assert error.value.code == "E301"


def test_it_loads_no_torch():
    code = "import sys, embedloss.model_names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
