"""Several data sets in one run: whose batch comes next, each data set's own loss, averages, prompts and mistakes."""

import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedloss import EmbedlossError, load_encoder
from embedloss.collate import Collator
from embedloss.mixing import counts, shares
from embedloss.mixture import Mixture, MixtureCollator, Part
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import RunConfig, Trainer, TrainingArguments, TrainingStep
from embedloss.training.data_config import data_sets
from embedloss.training.data_sets import mean_metrics
from embedloss.training.health import replay
from embedloss.training.per_dataset import PerDataset
from embedloss.training.trainer import load_step, read_loss

sys.path.insert(0, str(Path(__file__).parent))
from test_training import Nce, _Plugin, plugin_manager


@pytest.fixture(autouse=True)
def plugin():
    registered = plugin_manager().register(_Plugin(), "test-training")
    yield
    plugin_manager().unregister(registered)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_bert(folder)
    return str(folder)


def pairs(count, name):
    rows = [{"anchor": f"{SENTENCES[i % 17]} {name} {i}", "positive": f"{SENTENCES[i % 5]} {name} {i}"} for i in range(count)]
    return datasets.Dataset.from_list(rows)


def names_of(sampler, mixture, epoch=0):
    sampler.set_epoch(epoch)
    return [mixture.__getitems__(keys)[0]["_dataset"] for keys in sampler]


def rows_of(sampler, mixture, epoch):
    sampler.set_epoch(epoch)
    rows = [row for keys in sampler for row in mixture.__getitems__(keys)]
    return {name: [r["_row"] for r in rows if r["_dataset"] == name] for name in mixture.parts}


def mixture(mix="auto", sizes=(60, 20, 40), weights=(None, None, None), **more):
    parts = {name: Part(pairs(size, name), weight=w) for name, size, w in zip("abc", sizes, weights, strict=True)}
    return Mixture(parts, mix, **more)


def sampler_of(data, batch_size=4, seed=1):
    return data.sampler(dict.fromkeys("abc", "random"), batch_size, seed)


def test_shares():
    assert shares("proportional", [30, 10], [None, None]) == [0.75, 0.25]
    assert shares("round-robin", [30, 10], [None, None]) == [0.5, 0.5]
    assert shares("auto", [30, 10], [1, 4]) == [0.2, 0.8]
    assert shares("temperature", [400, 100], [None, None], 2) == [2 / 3, 1 / 3]
    assert shares("temperature", [400, 100], [None, None], 1) == [0.8, 0.2]


@pytest.mark.parametrize(
    ("mix", "weights", "temperature", "message"),
    [
        ("weights", [1, None], None, "1 of 2 data sets have a weight"),
        ("auto", [1, 0], None, "must be positive, got 0"),
        ("proportional", [1, 2], None, "--mix proportional reads no weights"),
        ("round-robin", [None, None], 2, "--mix round-robin reads no temperature"),
        ("temperature", [None, None], 0.5, "at least 1, such as 2; got 0.5"),
        ("temperature", [None, None], None, "got none"),
    ],
)
def test_shares_that_cannot_be(mix, weights, temperature, message):
    with pytest.raises(EmbedlossError, match=message) as caught:
        shares(mix, [3, 4], weights, temperature)
    assert caught.value.code == "E401"


def test_stop_rules():
    assert counts([30, 10], [0.5, 0.5], "first-exhausted") == [10, 10]
    assert counts([30, 10], [0.5, 0.5], "all-exhausted") == [30, 30]
    assert counts([30, 10], [0.75, 0.25], "first-exhausted") == [30, 10] == counts([30, 10], [0.75, 0.25], "all-exhausted")
    assert counts([1000, 1], [0.999, 0.001], "first-exhausted") == [999, 1]


def test_proportional_uses_every_row_once_in_batches_of_one_data_set():
    data = mixture()
    sampler = sampler_of(data)
    assert len(sampler) == 30 == len(list(sampler))
    for epoch in (0, 1):
        assert {k: sorted(v) for k, v in rows_of(sampler, data, epoch).items()} == {
            "a": list(range(60)), "b": list(range(20)), "c": list(range(40))
        }  # fmt: skip
    for keys in sampler:
        assert len({row["_dataset"] for row in data.__getitems__(keys)}) == 1
    assert names_of(sampler, data, 0) != names_of(sampler, data, 1)
    assert names_of(sampler_of(data), data, 1) == names_of(sampler, data, 1)
    assert names_of(sampler_of(data, seed=2), data, 1) != names_of(sampler, data, 1)


def test_an_epoch_that_ends_early_goes_on_with_the_rows_that_were_left():
    data = mixture("round-robin")
    sampler = sampler_of(data)
    assert names_of(sampler, data) == ["a", "b", "c"] * 5
    seen = [rows_of(sampler, data, epoch) for epoch in range(3)]
    assert sorted(itertools.chain(*(s["a"] for s in seen))) == list(range(60))
    for found in seen:
        assert sorted(found["b"]) == list(range(20))


def test_all_exhausted_repeats_the_small_ones():
    data = mixture("weights", weights=(1, 1, 2), stop="all-exhausted")
    sampler = sampler_of(data)
    assert Counter(names_of(sampler, data)) == {"a": 15, "b": 15, "c": 30}
    assert len(sampler) == 60
    for epoch in (0, 1):
        found = rows_of(sampler, data, epoch)
        assert all(set(found[name]) == set(range(n)) for name, n in zip("abc", (60, 20, 40), strict=True))
        assert set(Counter(found["b"]).values()) == {3}


def test_skipping_gives_the_batches_that_would_have_come():
    from accelerate.data_loader import SkipBatchSampler

    sampler = sampler_of(mixture("weights", weights=(3, 1, 1)))
    sampler.set_epoch(2)
    whole = list(sampler)
    assert list(SkipBatchSampler(sampler, 7)) == whole[7:]


def make_trainer(model, out, mix, *, steps=12, losses=None, **more):
    torch.manual_seed(0)
    encoder = load_encoder(model)
    loss = PerDataset(losses or {"a": Nce(start=1.5), "b": Nce(start=2.5)})
    step = TrainingStep(encoder, loss, seed=3)
    settings = {"save_steps": 4, "logging_steps": 4, "learning_rate": 1e-3, **more}
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, save_total_limit=3, report_to="none",
        disable_tqdm=True, seed=3, use_cpu=True, **settings,
    )  # fmt: skip
    prompts = {"a": {"anchor": "query: "}, "b": {}}
    collators = {name: Collator(encoder.processor, own, "pairs", 500, prompts[name]) for name, own in loss.items()}
    return Trainer(step, arguments, train_dataset=mix, collator=MixtureCollator(collators))


def two(**more):
    return Mixture({"a": Part(pairs(24, "a"), batch_size=6, **more), "b": pairs(12, "b")})


def test_each_loss_is_trained_on_its_own_steps_logged_saved_and_resumed(model, tmp_path):
    whole = make_trainer(model, tmp_path / "whole", two())
    seen = []
    original = whole.compute_loss

    def note(module, inputs, *args, **kwargs):
        found = original(module, inputs, *args, **kwargs)
        seen.append((inputs["dataset"], len(inputs["keys"]), float(found.detach())))
        return found

    whole.compute_loss = note
    whole.train()
    assert {(name, rows) for name, rows, _ in seen} == {("a", 6), ("b", 4)}
    for number, entry in enumerate(e for e in whole.state.log_history if "loss" in e):
        steps = seen[4 * number : 4 * number + 4]
        for name in "ab":
            own = [value for which, _, value in steps if which == name]
            assert (f"{name}/loss" in entry) == bool(own)
            if own:
                assert entry[f"{name}/loss"] == pytest.approx(np.mean(own), rel=1e-5)
        assert entry["loss"] == pytest.approx(np.mean([value for *_, value in steps]), rel=1e-3)
    saved = load_file(tmp_path / "whole" / "checkpoint-12" / "loss.safetensors")
    moved = {name: float(saved[f"losses.for_{name}.log_scale"]) for name in "ab"}
    assert 0 < abs(moved["a"] - 1.5) < 0.1
    assert 0 < abs(moved["b"] - 2.5) < 0.1
    again = make_trainer(model, tmp_path / "again", two())
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    expected, found = whole.step_module.state_dict(), again.step_module.state_dict()
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    loss = read_loss(tmp_path / "whole" / "checkpoint-12")
    assert loss.expressions() == {"a": "test_nce(start=1.5)", "b": "test_nce(start=2.5)"}
    load_step(TrainingStep(load_encoder(model), loss), tmp_path / "whole" / "checkpoint-12")
    assert float(loss.of("b").log_scale.detach()) == moved["b"]


def test_prompts_belong_to_their_data_set(model, tmp_path):
    trainer = make_trainer(model, tmp_path, two())
    collators = trainer.data_collator.collators
    row = [{"anchor": "a door", "positive": "a box", "_dataset": name} for name in "ab"]
    lengths = [
        sum(int(c["attention_mask"].sum()) for c in collators[n]([r, r])["chunks"]) for n, r in zip("ab", row, strict=True)
    ]
    assert lengths[0] > lengths[1]


def test_a_nonfinite_loss_names_the_data_set_and_can_be_replayed(model, tmp_path):
    trainer = make_trainer(model, tmp_path, two(), losses={"a": Nce(), "b": Nce(break_at=5)})
    order = [trainer.train_dataset.__getitems__(keys)[0]["_dataset"] for keys in trainer.sampler()]
    at = order.index("b") if order[5] != "b" else 5
    trainer = make_trainer(model, tmp_path, two(), losses={"a": Nce(), "b": Nce(break_at=at)})
    with pytest.raises(EmbedlossError, match=r"of the data set 'b'") as caught:
        trainer.train()
    assert caught.value.code == "E207"
    assert dict(replay(str(tmp_path / f"nonfinite-step-{at + 1}")))["term nce"] == "inf"


def test_means_over_evaluation_sets():
    found = {"x": {"ndcg@10": 0.5, "mrr@10": 0.2}, "y": {"ndcg@10": 0.7}, "z": {"spearman_cosine": 0.9, "ndcg@10": 0.0}}
    main = {"x": "ndcg@10", "y": "ndcg@10", "z": "spearman_cosine"}
    metrics = mean_metrics(found, main)
    assert metrics["mean/ndcg@10"] == pytest.approx(0.4)
    assert metrics["mean/main"] == pytest.approx(0.7)
    assert "mean/mrr@10" not in metrics
    assert metrics["x/mrr@10"] == 0.2
    assert mean_metrics({"": {"a": 1.0}}, {"": "a"}) == {"a": 1.0}
    assert mean_metrics({"x": {"a": 1.0}}, {"x": None}) == {"x/a": 1.0}


BASE = {"model": "m", "out": "o"}


def test_every_way_to_write_several_data_sets_means_the_same():
    listed = [
        {"name": "qa", "path": "qa.jsonl", "loss": "mnrl", "weight": 2, "prompts": {"anchor": "q: "}, "batch-size": 8},
        {"name": "sts", "path": "sts.csv", "loss": "cosent", "weight": 1},
    ]
    mapped = {entry["name"]: {k: v for k, v in entry.items() if k != "name"} for entry in listed}
    typed = {
        "data": ["qa=qa.jsonl", "sts=sts.csv"], "loss": ["qa=mnrl", "cosent"], "weights": ["qa=2", "sts=1"],
        "prompts": {"qa.anchor": "q: "}, "data.qa.batch_size": "8",
    }  # fmt: skip
    made = [data_sets(RunConfig.from_mapping({**BASE, **values})) for values in ({"data": listed}, {"data": mapped}, typed)]
    assert made[0] == made[1] == made[2]
    assert [(s.name, s.loss, s.weight, s.batch_size, s.prompts) for s in made[0]] == [
        ("qa", "mnrl", 2.0, 8, {"anchor": "q: "}), ("sts", "cosent", 1.0, None, {})
    ]  # fmt: skip
    config = RunConfig.from_mapping({**BASE, **typed})
    config.validate()
    import yaml

    assert data_sets(RunConfig.from_mapping(yaml.safe_load(config.to_yaml()))) == made[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": ["qaa=mnrl"]}, "--loss qaa=mnrl is for the unknown data set 'qaa'. Did you mean 'qa'?"),
        ({"prompts": {"st.anchor": "x"}}, "--prompt st.anchor is for the unknown data set 'st'. Did you mean 'sts'?"),
        ({"prompts": {"dev": {"anchor": "x"}}}, "'prompts' is for the unknown data set 'dev'. Data sets: qa, sts."),
        ({"weights": {"q": 1}}, "--weight q=1 is for the unknown data set 'q'. Did you mean 'qa'?"),
        ({"data.qa.batchsize": 4}, "data set 'qa' has the unknown key 'batchsize'. Did you mean 'batch_size'?"),
        ({"data": ["qa=a.jsonl", "b.jsonl"]}, "several data sets need names: --data NAME=b.jsonl."),
        ({"data": [{"path": "a.jsonl"}]}, "every entry of 'data' needs a 'name'"),
        ({"data": [{"name": "mean", "path": "a.jsonl"}]}, "'mean' cannot name a data set"),
        ({"data": ["qa=a.jsonl", "qa=b.jsonl"]}, "the data set 'qa' is given twice"),
        ({"data": {"qa": {"loss": "mnrl"}}}, "data set 'qa' has no 'path'"),
        ({"data": {"qa": {"path": "a", "weight": "heavy"}}}, "'data.qa.weight' must be a number; got 'heavy'"),
        ({"loss": ["mnrl", "cosent"]}, "two losses without a data set: mnrl and cosent"),
        ({"data": "a.jsonl", "loss": "qa=mnrl"}, "--loss qa=mnrl is for a data set 'qa', but the data has no names"),
    ],
)  # fmt: skip
def test_mistakes_in_settings(values, message):
    with pytest.raises(EmbedlossError) as caught:
        RunConfig.from_mapping({**BASE, "data": ["qa=a.jsonl", "sts=b.jsonl"], **values})
    assert caught.value.code == "E401"
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "data set 'qa' has no loss; type --loss qa=EXPR, or --loss EXPR for all"),
        ({"loss": "mnrl", "mix": "temperature"}, "--mix temperature needs --mix-temperature T"),
        ({"loss": "mnrl", "weights": ["qa=1"]}, "1 of 2 data sets have a weight; give one to each."),
        ({"loss": "mnrl", "data": "a.jsonl", "stop": "all-exhausted"}, "are for several data sets"),
    ],
)
def test_settings_that_do_not_go_together(values, message):
    config = RunConfig.from_mapping({**BASE, "data": ["qa=a.jsonl", "sts=b.jsonl"], **values})
    with pytest.raises(EmbedlossError) as caught:
        config.validate()
    assert caught.value.code == "E401"
    assert message in str(caught.value)


def test_messages_about_columns_name_the_data_set(tmp_path):
    from embedloss.training.run import prepare

    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"anchor": str(i), "positive": f"x {i}"}) + "\n" for i in range(3)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"q": str(i), "d": f"x {i}"}) + "\n" for i in range(3)))
    values = {**BASE, "model": "static(dimension=4)", "data": {"a": str(tmp_path / "a.jsonl"), "b": str(tmp_path / "b.jsonl")}}
    values |= {"loss": "test_nce", "out": str(tmp_path / "out")}
    with pytest.raises(EmbedlossError) as caught:
        prepare(RunConfig.from_mapping(values), lambda text: None)
    assert "data set 'b': " in str(caught.value)
    assert "--map b.anchor=q --map b.positive=d" in str(caught.value)
    fixed = RunConfig.from_mapping({**values, "map": {"b.anchor": "q", "b.positive": "d"}, "prompts": {"a.ancor": "x"}})
    with pytest.raises(EmbedlossError, match=r"data set 'a': prompt for the unknown role 'ancor'\. Did you mean 'anchor'"):
        prepare(fixed, lambda text: None)
