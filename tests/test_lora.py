"""LoRA: gradients with checkpointed layers, recomputation and two processes; folders that open here and elsewhere.

Run as a script it is one of the two processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("peft")

from embedloss import EmbedlossError, create_loss, load_encoder
from embedloss.collate import Collator, Keyed
from embedloss.distributed import leave
from embedloss.encoders import lora
from embedloss.encoders.lora import LoraSettings, add_adapters, has_adapters, merge_adapters
from embedloss.testing.models import SENTENCES, tiny_bert, tiny_cross_encoder
from embedloss.training import RunConfig, TrainingStep, run_training

ROWS = 16
PROCESSES = 2


def rows():
    return [{"anchor": f"{SENTENCES[i]} {i}", "positive": " ".join(SENTENCES[: 1 + i % 3])} for i in range(ROWS)]


def gradients(model, keys, *, recompute=False, layers=False, dropout=False, gather=False):
    """Value and gradients of one step over some rows, in float64; the adapters' second halves are not zero."""
    encoder = load_encoder(model).double()
    add_adapters(encoder, LoraSettings(r=4, dropout=0.3 if dropout else 0.0))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    if not dropout:
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    loss = create_loss("mnrl(scale=5) + 0.1 * gor()")
    step = TrainingStep(encoder, loss, recompute=recompute, gather=gather).train()
    if layers:
        step.gradient_checkpointing_enable()
    batch = Collator(encoder.processor, loss, "pairs", chunk_tokens=60)(
        Keyed(datasets.Dataset.from_list(rows())).__getitems__(keys)
    )
    assert len(batch["chunks"]) >= 3
    torch.manual_seed(11 + keys[0])
    wrapped = torch.nn.parallel.DistributedDataParallel(step) if gather else step
    total = wrapped(batch)["loss"]
    total.backward()
    return total.detach(), {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}


def process(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    part = list(range(rank * ROWS // PROCESSES, (rank + 1) * ROWS // PROCESSES))
    found = {}
    for dropout in (False, True):
        for both in (False, True):
            found[dropout, both] = gradients(f"{folder}/model", part, recompute=both, layers=both, dropout=dropout, gather=True)
    torch.save(found, f"{folder}/found-{rank}.pt")
    dist.barrier()
    leave()


def same(found, wanted, tolerance=1e-10):
    (value, grads), (value_, grads_) = found, wanted
    assert set(grads) == set(grads_)
    assert any("lora_A" in n for n in grads)
    assert any("lora_B" in n for n in grads)
    assert all("lora_" in n for n in grads)  # and nothing else is trained
    for name, gradient in grads.items():
        assert float(grads_[name].abs().max()) > 1e-8, name
        assert torch.allclose(gradient, grads_[name], rtol=0, atol=tolerance), name
    return float(value), float(value_)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    tiny_bert(folder / "model")
    return str(folder / "model")


@pytest.mark.parametrize("dropout", [False, True])
def test_checkpointed_layers_and_recomputation_change_no_gradient(model, dropout):
    keys = list(range(ROWS))
    plain = gradients(model, keys, dropout=dropout)
    for recompute, layers in ((True, False), (False, True), (True, True)):
        a, b = same(gradients(model, keys, recompute=recompute, layers=layers, dropout=dropout), plain)
        assert a == b


def test_two_processes_with_all_of_it_give_the_gradients_of_one(model):
    folder = Path(model).parent
    command = [sys.executable, __file__, str(folder)]
    started = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(PROCESSES)]
    try:
        errors = [each.communicate(timeout=120)[1] for each in started]
    finally:
        for each in started:
            each.kill()
    assert all(each.returncode == 0 for each in started), "\n".join(errors)
    first, second = (torch.load(folder / f"found-{i}.pt", weights_only=True) for i in range(PROCESSES))
    for case in first:
        same(first[case], second[case], 0.0)  # both processes hold the same mean
    for dropout in (False, True):
        same(first[dropout, True], first[dropout, False])
    # Without dropout the two halves make the whole batch of one process.
    value, grads = gradients(model, list(range(ROWS)))
    mean = (first[False, True][0] + second[False, True][0]) / 2
    whole = (value, grads)
    same((mean, {n.removeprefix("module."): g for n, g in first[False, True][1].items()}), whole)


@pytest.mark.slow
def test_a_command_with_all_of_it_on_two_processes_trains_as_a_plain_run(tmp_path):
    pytest.importorskip("embedloss_cli")
    model = tiny_bert(tmp_path / "model", dropout=0.0)
    plain, data = tmp_path / "plain", tmp_path / "pairs.jsonl"
    texts = [{"anchor": f"{SENTENCES[i]} {i}", "positive": f"{i} {SENTENCES[-1 - i]}"} for i in range(ROWS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    config = RunConfig(
        model=model, data=str(data), loss="mnrl", out=str(plain), lora={"r": "4"}, batch_size=8, max_steps=4, logging_steps=1,
        learning_rate=1e-2,
    )  # fmt: skip
    run_training(config, lambda text: None)
    options = [
        "--lora", "r=4", "--gradient-checkpointing", "--recompute", "--chunk-tokens", "60", "--processes", "2", "--gather",
        "--batch-size", "4", "--max-steps", "4", "--learning-rate", "1e-2", "--logging-steps", "1",
    ]  # fmt: skip
    paths = ["--model", model, "--data", str(data), "--loss", "mnrl", "--out", str(tmp_path / "both")]
    command = [sys.executable, "-m", "embedloss_cli", "train", *paths, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    logs = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (plain, tmp_path / "both")
    ]
    for key in ("loss", "grad_norm"):
        one, two = ([e[key] for e in entries if key in e] for entries in logs)
        assert len(one) == 4
        assert min(one) > 1e-4
        assert two == pytest.approx(one, rel=1e-4), key
    start, ends = load_encoder(model), [load_encoder(str(folder)) for folder in (plain, tmp_path / "both")]
    before, one, two = (encoder.encode(list(SENTENCES)) for encoder in (start, *ends))
    assert abs(one - before).max() > 1e-2
    assert two == pytest.approx(one, abs=1e-4)


# -- folders -----------------------------------------------------------------------------------------------------------
def trained(model, tmp_path, **more):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    lines = []
    out = tmp_path / ("merged" if more.get("lora_merge") else "adapters")
    settings = {"loss": "mnrl", "batch_size": 8, "max_steps": 3, "learning_rate": 1e-2, **more}
    run_training(RunConfig(model=str(model), data=str(data), out=str(out), overwrite=True, **settings), lines.append)
    return out, "\n".join(lines)


def test_adapters_are_saved_merged_and_opened_by_both_libraries(model, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    before = load_encoder(model).encode(list(SENTENCES))
    out, said = trained(model, tmp_path, lora={"r": "4"}, save_steps=2)
    assert "rank 4 on query, value" in said
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    merged, _ = trained(model, tmp_path, lora={"r": "4"}, lora_merge=True)
    assert (merged / "model.safetensors").is_file()
    assert not (merged / "adapter_config.json").exists()
    adapted = load_encoder(str(out))
    after = adapted.encode(list(SENTENCES))
    assert abs(after - before).max() > 1e-3
    assert load_encoder(str(merged)).encode(list(SENTENCES)) == pytest.approx(after, abs=1e-5)
    for folder in (out, merged):
        theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(list(SENTENCES))
        assert theirs == pytest.approx(after, abs=1e-5)
    # What is loaded can be trained on, adapters only, and merged later.
    assert {n.rpartition(".lora_")[1] for n, p in adapted.model.named_parameters() if p.requires_grad} == {".lora_"}
    merge_adapters(adapted)
    assert not has_adapters(adapted.model)
    assert adapted.encode(list(SENTENCES)) == pytest.approx(after, abs=1e-5)
    assert not any("lora" in n for n in adapted.state_dict())


def test_a_run_with_adapters_resumes(model, tmp_path):
    whole, _ = trained(model, tmp_path, lora={"r": "4", "dropout": "0.1"}, max_steps=4, save_steps=2)
    ends = load_encoder(str(whole)).state_dict()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (whole / file).unlink()
    import shutil

    shutil.rmtree(whole / "checkpoint-4")
    data = str(tmp_path / "data.jsonl")
    settings = {"loss": "mnrl", "batch_size": 8, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}
    run_training(
        RunConfig(model=str(model), data=data, out=str(whole), resume=True, lora={"r": "4", "dropout": "0.1"}, **settings),
        lambda text: None,
    )
    again = load_encoder(str(whole)).state_dict()
    assert all(torch.equal(a, again[n]) for n, a in ends.items())


def test_a_cross_encoders_new_head_is_saved_with_its_adapters(model, tmp_path):
    data = tmp_path / "scores.jsonl"
    scored = [{"sentence1": r["anchor"], "sentence2": r["positive"], "score": i % 2} for i, r in enumerate(rows())]
    data.write_text("".join(json.dumps(row) + "\n" for row in scored), encoding="utf-8")
    pairs = [(r["anchor"], r["positive"]) for r in rows()]
    tiny_cross_encoder(tmp_path / "cross")
    for base in (model, tmp_path / "cross"):
        out = tmp_path / f"out-{Path(base).name}"
        config = RunConfig(
            model=str(base), data=str(data), loss="bce", kind="cross-encoder", out=str(out), lora={"r": "4"}, max_steps=3,
            batch_size=8, learning_rate=1e-2,
        )  # fmt: skip
        run_training(config, lambda text: None)
        encoder = load_encoder(str(out))
        scores = encoder.predict(pairs)
        assert scores.std() > 0
        merge_adapters(encoder)
        encoder.save(tmp_path / "plain")
        assert load_encoder(tmp_path / "plain").predict(pairs) == pytest.approx(scores, abs=1e-5)
    # Where the head was there before, the adapters open in sentence-transformers too.
    theirs = pytest.importorskip("sentence_transformers").CrossEncoder(str(out), device="cpu")
    assert theirs.predict(pairs) == pytest.approx(scores, abs=1e-5)


# -- mistakes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": "8"}, "no setting 'rank'"),
        ({"alhpa": "8"}, "Did you mean 'alpha'"),
        ({"r": "many"}, "not understood"),
        ({"r": "0"}, "r of at least 1"),
        ({"dropout": "1"}, "dropout from 0"),
        ({"alpha": "nan"}, "alpha above 0"),
    ],
)
def test_settings_that_cannot_be(values, said):
    with pytest.raises(EmbedlossError, match=said) as caught:
        LoraSettings.read(values)
    assert caught.value.code == "E401"


def test_layers_that_are_not_there_and_adapters_that_are(model):
    encoder = load_encoder(model)
    with pytest.raises(EmbedlossError, match=r"no layer 'qury'. Did you mean 'query'"):
        add_adapters(encoder, LoraSettings(target=("qury",)))
    add_adapters(encoder, LoraSettings(r=2))
    with pytest.raises(EmbedlossError, match="has adapters already"):
        add_adapters(encoder, LoraSettings(r=2))


def test_adapters_whose_model_is_gone(model, tmp_path):
    encoder = load_encoder(model)
    add_adapters(encoder, LoraSettings(r=2))
    encoder.save(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    settings = json.loads(file.read_text())
    assert settings["base_model_name_or_path"] == str(Path(model).resolve())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": "/gone/model"}))
    with pytest.raises(EmbedlossError, match="belong to the model '/gone/model', which cannot be found") as caught:
        load_encoder(tmp_path / "a")
    assert caught.value.code == "E301"


def test_without_peft_the_message_says_what_to_install(model):
    """In a process in which peft cannot be imported."""
    code = (
        "import sys\n"
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'peft' else real(name, *a)\n"
        "from embedloss.encoders.lora import need_peft\n"
        "need_peft()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 1
    assert "E404" in done.stderr
    assert lora.INSTALL in done.stderr


def test_a_head_with_two_logits_keeps_its_number(tmp_path):
    tiny_cross_encoder(tmp_path / "cross", num_labels=3)
    encoder = load_encoder(tmp_path / "cross")
    add_adapters(encoder, LoraSettings(r=2))
    encoder.save(tmp_path / "a")
    assert load_encoder(tmp_path / "a").dimension == 3


if __name__ == "__main__":
    process(sys.argv[1], int(sys.argv[2]))
