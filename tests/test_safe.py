"""Hostile folders: nothing is unpickled, and no path leads out of its folder."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import datasets
import pytest
import torch

from embedloss import EmbedlossError, load_encoder
from embedloss.data import load_rows
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import RunConfig, run_training
from embedloss.training.checkpoints import seal
from embedloss.training.health import replay


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.fixture
def model(tmp_path):
    tiny_bert(tmp_path / "model", layers=1, hidden=16, vocabulary=150)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["../outside", "/etc", "1_Pooling/../../outside", "..\\outside", "C:\\outside", "~/outside"])
def test_a_module_outside_of_its_folder_is_refused(model, name):
    modules = json.loads((model / "modules.json").read_text())
    modules[1]["path"] = name
    (model / "modules.json").write_text(json.dumps(modules))
    shutil.copytree(model / "1_Pooling", model.parent / "outside")
    with pytest.raises(EmbedlossError, match="which is outside of the model's folder") as caught:
        load_encoder(str(model))
    assert caught.value.code == "E301"


def test_weights_outside_of_their_folder_are_refused(model):
    (model / "model.safetensors").rename(model.parent / "stolen.safetensors")
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "../stolen.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EmbedlossError, match="which is outside of the model's folder"):
        load_encoder(str(model))


def test_weights_that_would_run_code_are_refused(model, tmp_path):
    (model / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Trap(tmp_path / "trapped")}, model / "pytorch_model.bin")
    with pytest.raises(EmbedlossError) as caught:
        load_encoder(str(model))
    assert caught.value.code == "E301"
    assert not (tmp_path / "trapped").exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "trapped").exists(), "the trap is no trap"


def test_a_dense_module_that_would_run_code_is_refused(model, tmp_path):
    modules = json.loads((model / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "config.json").write_text(json.dumps({"in_features": 16, "out_features": 4}))
    torch.save({"linear.weight": Trap(tmp_path / "trapped")}, model / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(EmbedlossError, match="damaged"):
        load_encoder(str(model))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_would_run_code_is_refused(model, tmp_path, file):
    rows = [{"anchor": f"{SENTENCES[i % 17]} {i}", "positive": SENTENCES[i % 16 + 1]} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {
        "model": str(model), "data": str(tmp_path / "pairs.jsonl"), "loss": "mnrl", "out": str(tmp_path / "run"),
        "batch_size": 8, "save_steps": 2, "sampler": "random",
    }  # fmt: skip
    run_training(RunConfig(**config, max_steps=2), say=lambda text: None)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    torch.save(Trap(tmp_path / "trapped"), checkpoint / file)
    seal(checkpoint, step=2, processes=1)
    with pytest.raises(EmbedlossError, match="would run code when read") as caught:
        run_training(RunConfig(**config, max_steps=4, resume=True), say=lambda text: None)
    assert caught.value.code == "E403"
    assert not (tmp_path / "trapped").exists()


def test_a_batch_that_would_run_code_is_not_replayed(model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "nonfinite-step-1"))
    (folder / "loss.json").write_text(json.dumps({"expression": "mnrl()"}))
    torch.save({"batch": Trap(tmp_path / "trapped"), "step": 0, "seed": 0}, folder / "batch.pt")
    with pytest.raises(EmbedlossError, match="would run code when read"):
        replay(str(folder))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd"])
def test_a_data_set_that_names_files_outside_is_refused(tmp_path, name):
    rows = datasets.Dataset.from_list([{"anchor": "a", "positive": "b"}])
    rows.save_to_disk(str(tmp_path / "data"))
    assert len(load_rows(str(tmp_path / "data"))) == 1
    state = json.loads((tmp_path / "data" / "state.json").read_text())
    (tmp_path / "data" / state["_data_files"][0]["filename"]).rename(tmp_path / "secret.arrow")
    state["_data_files"] = [{"filename": name}]
    (tmp_path / "data" / "state.json").write_text(json.dumps(state))
    with pytest.raises(EmbedlossError, match="which is outside of the data set's folder") as caught:
        load_rows(str(tmp_path / "data"))
    assert caught.value.code == "E103"


def test_no_archive_and_no_pickle_is_data(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("../outside.jsonl", '{"anchor": "a", "positive": "b"}\n')
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    for name in ("data.zip", "data.pkl"):
        with pytest.raises(EmbedlossError) as caught:
            load_rows(str(tmp_path / name))
        assert caught.value.code == "E103"
    assert not (tmp_path / "trapped").exists()
    assert not (tmp_path.parent / "outside.jsonl").exists()
