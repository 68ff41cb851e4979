"""Composed losses through the command line: what the model cannot give, guides, and runs on several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from embedloss.testing.models import SENTENCES, tiny_bert

ROWS = [{"anchor": text, "positive": SENTENCES[i - 1]} for i, text in enumerate(SENTENCES)]


@pytest.fixture
def data(write, tmp_path):
    """Pairs, a model and a guide."""
    tiny_bert(tmp_path / "model", hidden=16, dropout=0.0)
    tiny_bert(tmp_path / "guide", layers=1, hidden=8, dropout=0.0, seed=7)
    return write("data.jsonl", ROWS)


def train(run, loss, *options, out="out"):
    given = ("--model", "model") if "--model" not in options else ()
    return run(
        "train", "--data", "data.jsonl", "--loss", loss, "--out", out, "--batch-size", 8, "--max-steps", 2, *given, *options
    )


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def distance(one, other):
    """Between the weights of two folders."""
    one, other = weights(one), weights(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("matryoshka(mnrl(), dims=[32, 8])", (), "E206: 'matryoshka' has dimension 32, but the model gives 16 dimensions."),
        ("0.1*gor()+matryoshka(mnrl(), dims=[17])", (), "E206: 'matryoshka' has dimension 17, but the model gives 16"),
        ("adaptive_layer(mnrl())", ("--model", "static"), "E302: 'adaptive-layer' needs all layers; a StaticEncoder has none."),
        ("matryoshka(adaptive_layer(mnrl()), dims=[8])", ("--model", "static"), "E302: 'matryoshka' needs all layers"),
        ("gist(guide='./gone')", (), "E301: "),
        ("mnrl(guide='data.jsonl')", (), "E301: "),
        (
            "mnrl(mask_same_id=True)",
            (),
            "E102: 'mnrl(mask_same_id=True)' compares ids of rows, and no column is bound to id.",
        ),
    ],
)
def test_what_the_model_or_the_data_cannot_give_is_refused(run, data, tmp_path, loss, options, message):
    result = train(run, loss, *options)
    assert result.status == 1, result
    assert "Traceback" not in result.err
    assert message in " ".join(result.err.split())
    assert not (tmp_path / "out").exists()


def test_gathering_on_one_process_is_said_to_have_no_effect(run, data, tmp_path):
    train(run, "mnrl()", out="plain")
    result = train(run, "mnrl()", "--gather")
    assert result.status == 0, result
    assert "note: --gather has no effect on one process" in result.out + result.err
    assert distance("plain", "out") == 0 < distance("model", "out")


def test_same_labels_are_masked_through_the_id(run, write, data):
    write("data.jsonl", [{**row, "topic": i % 3} for i, row in enumerate(ROWS)])
    options = ("--map", "id=topic", "--sampler", "random")
    assert train(run, "mnrl()", *options, out="plain").status == 0
    result = train(run, "mnrl(mask_same_id=True)", *options)
    assert result.status == 0, result
    assert (
        max(float((a - b).abs().max()) for a, b in zip(weights("plain").values(), weights("out").values(), strict=True)) > 1e-6
    )


def test_a_cached_guide_trains_as_a_live_one(run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLOSS_CACHE", str(tmp_path / "cache"))
    loss = "gist(guide='guide', temperature=0.1)"
    assert train(run, loss, out="live").status == 0
    assert not (tmp_path / "cache").exists()
    for out in ("cold", "warm"):
        result = train(run, loss, "--cache-guide", out=out)
        assert result.status == 0, result
    [folder] = (tmp_path / "cache" / "guides").iterdir()
    assert len(list(folder.iterdir())) == 1  # the second run found everything
    assert distance("model", "live") > 1e-5
    assert distance("live", "cold") < 1e-6
    assert distance("cold", "warm") == 0


@pytest.mark.slow
def test_processes_and_accelerate_launch_are_the_same_run(run, data, tmp_path):
    """Two processes with uneven last batches, gathered pools and a cached guide; 23 rows are 8 + 8 + 7."""
    settings = """
model: model
data: data.jsonl
loss: mnrl(scale=5, mask_same_text=True) + 0.5 * gist(guide='guide', temperature=0.2) + 0.1 * gor()
epochs: 1
learning_rate: 0.001
gather: true
cache_guide: true
"""
    rows = [{"anchor": f"{row['anchor']} {i}", "positive": row["positive"]} for i, row in enumerate((ROWS * 3)[:23])]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "run.yaml").write_text(settings, encoding="utf-8")
    environment = {**os.environ, "EMBEDLOSS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    module = ["-m", "embedloss_cli", "train", "run.yaml", "--batch-size"]
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    commands = {
        "two": [sys.executable, *module, "4", "--processes", "2"],
        "accelerate": [*launch, *module, "4"],
    }
    for out, command in commands.items():
        done = subprocess.run([*command, "--out", out], env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "cache" / "guides").iterdir())) == 1
    assert distance("model", "two") > 1e-4
    assert distance("two", "accelerate") == 0
