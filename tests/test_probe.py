"""The fixed sample of texts whose spread is logged: always the same texts, and no trace in what is trained."""

import json

import pytest
import torch

from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import RunConfig, run_training
from embedloss.training.health import HealthWarning

NAMES = {"similarity", "rank", "uniformity", "alignment"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny_bert(folder / "model", layers=1, hidden=16, vocabulary=150)
    pairs = [{"anchor": f"{SENTENCES[i % 17]} {i}", "positive": f"{SENTENCES[i % 13]} {i}"} for i in range(90)]
    single = [{"text": f"{SENTENCES[i % 17]} {i}", "label": i % 5} for i in range(60)]
    for name, rows in {"pairs": pairs, "single": single}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def run(inputs, out, **settings):
    data = {"data": str(inputs / "pairs.jsonl"), "loss": "mnrl"}
    common = {"model": str(inputs / "model"), "batch_size": 8, "max_steps": 7, "logging_steps": 3, "save_steps": 0}
    run_training(RunConfig(**{**common, **data, "out": str(out), **settings}), say=lambda text: None, quiet=True)
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {n: torch.as_tensor(t) for n, t in load(out).items()}, entries


def load(folder):
    from embedloss import load_encoder

    return load_encoder(str(folder)).state_dict()


def test_it_is_logged_at_the_start_every_n_steps_and_at_the_end_and_moves_nothing(inputs, tmp_path):
    watched, entries = run(inputs, tmp_path / "on", probe_steps=3)
    found = {e["step"]: {k for k in e if k.startswith("probe/")} for e in entries if "probe/rank" in e}
    assert found == {step: {f"probe/{name}" for name in NAMES} for step in (0, 3, 6, 7)}
    assert [e["step"] for e in entries if "loss" in e] == [3, 6]  # no log entry is lost
    values = [e["probe/similarity"] for e in entries if "probe/rank" in e]
    assert len(set(values)) == len(values)
    plain, others = run(inputs, tmp_path / "off", probe_steps=0)
    assert not any("probe/rank" in e for e in others)
    assert all(torch.equal(value, plain[name]) for name, value in watched.items())
    assert [e["loss"] for e in entries if "loss" in e] == [e["loss"] for e in others if "loss" in e]
    _, again = run(inputs, tmp_path / "again", probe_steps=7)
    assert {e["step"]: e["probe/rank"] for e in again if "probe/rank" in e}.items() <= {
        e["step"]: e["probe/rank"] for e in entries if "probe/rank" in e
    }.items()  # the same texts, whenever one looks


def test_each_data_set_and_each_stream_has_its_own(inputs, tmp_path):
    data = {
        "a": {"path": str(inputs / "pairs.jsonl"), "loss": "mnrl"},
        "b": {"path": str(inputs / "single.jsonl"), "loss": "batch_all_triplet"},
    }
    for name, more in {"mixed": {}, "streams": {"streaming": True}}.items():
        _, entries = run(inputs, tmp_path / name, data=data, loss="", **more)
        [first] = [e for e in entries if e["step"] == 0]
        probes = {k for k in first if k.startswith("probe/")}
        assert probes == {*(f"probe/a/{n}" for n in NAMES), *(f"probe/b/{n}" for n in NAMES - {"alignment"})}


def test_a_learning_rate_that_destroys_the_model_is_named(inputs, tmp_path):
    with pytest.warns(HealthWarning, match=r"at step 5 the embeddings of different texts .* are nearly equal"):
        run(inputs, tmp_path / "run", probe_steps=5, learning_rate=5.0, warmup=0)
