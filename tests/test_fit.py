"""Memory: chunks cut anew, real failures of allocation, the choice of a chunk, and what the batch plan says."""

import os
import re
import resource
import subprocess
import sys
import warnings

import datasets
import psutil
import pytest
import torch

from embedloss import EmbedlossError, create_loss, load_encoder
from embedloss.collate import Collator, Keyed
from embedloss.encoders.base import smaller_chunks
from embedloss.encoders.text import pad_id
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import RunConfig, Trainer, TrainingArguments, TrainingStep, run_training
from embedloss.training.fit import MARGIN, choose
from embedloss.training.memory import Saved, estimate, out_of_memory, parse_size


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_bert(folder, layers=2, hidden=64, heads=2)
    return str(folder)


def pairs(count):
    rows = [{"anchor": f"{SENTENCES[i % 17]} {i}", "positive": " ".join(SENTENCES[: 1 + i % 4])} for i in range(count)]
    return datasets.Dataset.from_list(rows)


def make(model, out, *, chunk_tokens, rows=400, recompute=True, steps=2):
    torch.manual_seed(0)
    encoder = load_encoder(model)
    step = TrainingStep(encoder, create_loss("mnrl"), recompute=recompute, seed=3)
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=rows, save_strategy="no", logging_steps=1,
        learning_rate=1e-3, report_to="none", disable_tqdm=True, seed=3, use_cpu=True, batch_sampler="random",
    )  # fmt: skip
    collator = Collator(encoder.processor, step.loss, "pairs", chunk_tokens)
    return Trainer(step, arguments, train_dataset=pairs(rows), collator=collator)


def test_chunks_cut_anew_are_those_of_a_smaller_limit(model):
    encoder, loss = load_encoder(model), create_loss("mnrl")
    rows = Keyed(pairs(40)).__getitems__(list(range(40)))
    large, small = (Collator(encoder.processor, loss, "pairs", limit)(rows) for limit in (2000, 150))
    assert len(small["chunks"]) > len(large["chunks"]) >= 2
    made = smaller_chunks(large["chunks"], 150, pad_id(encoder.processor.tokenizer))
    assert torch.equal(small["place"], large["place"])
    assert len(made) == len(small["chunks"])
    for one, two in zip(made, small["chunks"], strict=True):
        assert set(one) == set(two)
        assert all(torch.equal(one[name], two[name]) for name in one)


def run_out_of_memory(model, out):
    """In a process of its own: after a failed allocation the libraries below torch stay unusable."""
    trainer = make(model, out, chunk_tokens=2**20, recompute=False)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**23, hard))
    try:
        trainer.train()
    except EmbedlossError as error:
        print(error)


def test_without_recompute_the_error_says_what_to_type(model, tmp_path):
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # a new thread's stack would be refused first
    arguments = [sys.executable, __file__, model, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=one)
    assert re.search(r"memory ran out at step 1 .*Type --recompute auto, or a smaller", done.stdout, re.DOTALL), done.stderr


def test_only_a_failed_allocation_is_one():
    assert out_of_memory(torch.OutOfMemoryError("x"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) + torch.ones(3)
    assert not out_of_memory(caught.value)


def test_the_estimate_is_near_what_is_counted(model):
    step = make(model, "unused", chunk_tokens=400, recompute=False).step_module
    batch = Collator(step.encoder.processor, step.loss, "pairs", 400)(Keyed(pairs(60)).__getitems__(list(range(60))))
    found = estimate(step, batch)
    with Saved([*step.parameters(), *step.buffers()]) as saved:
        step.train()(batch)
    assert 0.7 < (found.step(False) - found.fixed) / saved.bytes < 1.4
    sizes = [(4 * p.numel(), p.requires_grad) for p in step.parameters()]
    assert found.fixed == sum(size * (4 if trained else 1) for size, trained in sizes)


def test_the_largest_chunk_that_fits_is_chosen(model):
    step = make(model, "unused", chunk_tokens=10**6).step_module
    batch = Collator(step.encoder.processor, step.loss, "pairs", 10**6)(Keyed(pairs(60)).__getitems__(list(range(60))))
    found = estimate(step, batch)
    assert choose(step, batch, int(found.step(False) / MARGIN) + 1)[:2] == (False, None)
    limit = int((found.fixed + found.outputs + 1000 * found.again) / MARGIN)
    assert choose(step, batch, limit)[:2] == (True, 512)
    with pytest.raises(EmbedlossError, match="a step does not fit in"):
        choose(step, batch, found.fixed // 2)


def test_recompute_auto_says_what_it_chose_and_the_run_keeps_it(model, tmp_path):
    pairs(64).to_json(tmp_path / "pairs.jsonl")
    settings = {
        "model": model, "data": str(tmp_path / "pairs.jsonl"), "loss": "mnrl", "out": str(tmp_path / "run"), "batch_size": 32,
        "max_steps": 2, "save_steps": 1, "recompute": "auto", "sampler": "random",
    }  # fmt: skip
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_training(RunConfig(**settings, memory_limit="6MB"), say=said.append)
    text = "\n".join(said)
    assert "MiB to use, a plain step takes about" in text
    assert "recompute with chunks of" in text
    assert "estimated memory: " in text
    assert "again in the backward pass (recompute)" in text
    said.clear()
    run_training(RunConfig(**{**settings, "max_steps": 3}, resume=True), say=said.append)
    assert "as at the first start: recompute on" in "\n".join(said)
    said.clear()
    run_training(RunConfig(**{**settings, "out": str(tmp_path / "other")}), say=said.append)
    assert "no recompute" in "\n".join(said)


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 2**30), ("800 MiB", 800 * 2**20), ("1.5k", 1536), ("77", 77)])
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "0", "4 apples"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="must be a size such as"):
        parse_size(text)
    with pytest.raises(EmbedlossError, match="memory_limit' must be a size"):
        RunConfig(model="m", data="d", loss="mnrl", out="o", recompute="auto", memory_limit=text).validate()


if __name__ == "__main__":
    run_out_of_memory(*sys.argv[1:])
