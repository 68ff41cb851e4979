"""Streams: sources go on where they stopped, blocks make whole batches, resuming is exact, bad rows are refused by number."""

import json
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node

from embedloss import EmbedlossError, LossSpec, load_encoder
from embedloss.collate import Collator
from embedloss.data import load_rows
from embedloss.sources import Rows, open_source
from embedloss.streaming import Position, Stream, Streams, StreamSampler
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import RunConfig, Trainer, TrainingArguments, TrainingStep

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


PAIRS = LossSpec(name="p", target="x:X", summary="", family="", formats=["pairs"])
CLASSES = LossSpec(name="c", target="x:X", summary="", family="", formats=["single+class"], sampler="group-by-label")


class Numbered:
    """Rows that are made when asked for; neither length nor state."""

    def __init__(self, rows):
        self.rows = rows
        self.read = 0

    def __iter__(self):
        for i in range(self.rows):
            self.read += 1
            yield {"anchor": f"{SENTENCES[i % 17]} {i}", "positive": f"{SENTENCES[i % 5]} {i}"}


def generated(rows):
    def make():
        yield from Numbered(rows)

    return datasets.IterableDataset.from_generator(make)


def write(folder, kind, rows=2500):
    table = [{"anchor": f'say "{i}", twice\nand again', "positive": f"p{i}", "score": i / 2} for i in range(rows)]
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in table))
    elif kind == "parquet":
        datasets.Dataset.from_list(table).to_parquet(str(path), batch_size=700)
    elif kind in ("csv", "tsv"):
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(table)
    else:
        datasets.Dataset.from_list(table).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "folder"])
def test_a_file_goes_on_where_it_stopped(tmp_path, kind):
    path = write(tmp_path, kind)
    source = open_source(path)
    whole = list(source.read())
    assert whole == list(load_rows(path))
    reader, state = source.read(), None
    for _ in range(1234):
        next(reader)
    state = json.loads(json.dumps(source.state()))
    assert list(open_source(path).read(state)) == whole[1234:]
    assert list(source.read()) == whole


@pytest.mark.parametrize("make", [generated, Numbered])
def test_an_iterable_goes_on_where_it_stopped(make):
    source = Rows(make(50))
    whole = list(source.read())
    reader = source.read()
    for _ in range(20):
        next(reader)
    state = json.loads(json.dumps(source.state()))
    assert list(Rows(make(50)).read(state)) == whole[20:]
    assert list(source.read(None, 1)) == whole


def test_sources_that_cannot_be_streams(tmp_path):
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(EmbedlossError, match=r"write \.jsonl to stream it"):
        open_source(tmp_path / "data.json")
    with pytest.raises(EmbedlossError, match="read only once"):
        open_source(iter([{"a": 1}]))
    with pytest.raises(EmbedlossError, match="was split by node"):
        open_source(split_dataset_by_node(generated(4), 0, 2))
    with pytest.raises(EmbedlossError, match="does not exist"):
        open_source(tmp_path / "gone.jsonl")


def sampler_of(rows, total, *, buffer=40, batch=8, kind="random", start=None, spec=PAIRS, form="pairs"):
    stream = Stream.of(rows, spec, form, buffer, sampler=kind)
    return StreamSampler(Streams({"": stream}), batch, total, 3, start)


def places(batches):
    return [[(row["_epoch"], row["_row"]) for row in batch] for batch in batches]


@pytest.mark.parametrize("kind", ["random", "no-duplicates", "length-grouped"])
def test_every_row_once_a_pass_in_whole_batches_and_in_another_order(kind):
    batches = places(sampler_of(Numbered(100), 50, kind=kind))
    assert {len(batch) for batch in batches} == {8}
    seen = Counter(place for batch in batches for place in batch)
    assert set(seen.values()) == {1}
    assert {row for turn, row in seen if turn == 0} == set(range(100))
    assert [row for batch in batches[:12] for _, row in batch] != [row for batch in batches[12:24] for _, row in batch]
    assert batches == places(sampler_of(Numbered(100), 50, kind=kind))


@pytest.mark.parametrize("kind", ["random", "no-duplicates"])
@pytest.mark.parametrize("make", [generated, Numbered])
def test_a_position_gives_the_batches_that_would_have_come(make, kind):
    whole = list(sampler_of(make(100), 20, kind=kind))
    for stop in (0, 5, 13):
        sampler = sampler_of(make(100), 20, kind=kind)
        reader = iter(sampler)
        for _ in range(stop + 3):  # workers are ahead of the step that is saved
            next(reader)
        position = json.loads(json.dumps(sampler.position(stop)))
        again = list(sampler_of(make(100), 20, kind=kind, start=position))
        assert again[:stop] == [[]] * stop
        assert again[stop:] == whole[stop:]


@pytest.mark.parametrize(("rows", "batch"), [(80, 7), (80, 40), (41, 8), (10, 8), (43, 8)])
def test_batches_are_whole_also_where_a_pass_ends(rows, batch):
    batches = places(sampler_of(Numbered(rows), 60, batch=batch))
    assert {len(b) for b in batches} == {batch}
    seen = Counter(place for b in batches for place in b)
    assert set(seen.values()) == {1}
    assert {row for turn, row in seen if turn == 0} == set(range(rows))


def test_a_source_smaller_than_a_batch_gives_what_it_has():
    batches = places(sampler_of(Numbered(5), 4, batch=8))
    assert [sorted(row for _, row in b) for b in batches] == [list(range(5))] * 4


def test_no_duplicates_within_a_batch():
    rows = [{"anchor": f"q{i % 11}", "positive": f"p{i}"} for i in range(200)]
    batches = list(sampler_of(rows, 40, kind="no-duplicates", batch=5))
    assert all(len({row["anchor"] for row in batch}) == len(batch) for batch in batches)
    assert {len(b) for b in batches} == {5}


def test_group_by_label_within_a_block():
    rng = np.random.default_rng(0)
    rows = [{"text": f"t{i}", "label": f"c{rng.integers(0, 9)}"} for i in range(300)]
    batches = list(sampler_of(rows, 30, kind="group-by-label", spec=CLASSES, form="single+class"))
    for batch in batches:
        sizes = Counter(row["label"] for row in batch)
        assert len(sizes) >= 2
        assert min(sizes.values()) >= 2
    ordered = sorted(rows, key=lambda row: row["label"])
    with pytest.raises(EmbedlossError, match=r"rows 1 to 10: two classes .* larger --shuffle-buffer") as caught:
        list(sampler_of(ordered, 30, kind="group-by-label", buffer=10, spec=CLASSES, form="single+class"))
    assert caught.value.code == "E106"


def test_a_class_that_stays_alone_is_left_out_with_a_warning():
    rows = [{"text": f"t{i}", "label": 99 if i == 50 else i % 3} for i in range(100)]
    with pytest.warns(UserWarning, match="rows whose class no other row of two blocks has are left out"):
        batches = list(sampler_of(rows, 11, kind="group-by-label", spec=CLASSES, form="single+class"))
    assert 99 not in {row["label"] for batch in batches for row in batch}


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        ({"anchor": None, "positive": "x"}, "E104", "column 'anchor', row 71: no value (null)"),
        ({"anchor": " ", "positive": "x"}, "E104", "column 'anchor', row 71: empty text"),
        ({"anchor": 7, "positive": "x"}, "E104", "row 71 holds a number (7)"),
        ({"anchor": "a", "positive": "x", "note": "n"}, "E102", "row 71 has the column 'note'"),
        ([1], "E103", "row 71: found list, not a dict"),
    ],
)
def test_bad_rows_are_refused_as_they_arrive(bad, code, message):
    rows = [*Numbered(70), bad, *Numbered(20)]
    sampler = sampler_of(rows, 50)
    reader = iter(sampler)
    assert len([next(reader) for _ in range(5)]) == 5
    with pytest.raises(EmbedlossError) as caught:
        list(reader)
    assert caught.value.code == code
    assert message in str(caught.value)


def test_bad_first_rows_are_refused_before_training():
    with pytest.raises(EmbedlossError, match="row 3: empty text"):
        sampler_of([*Numbered(2), {"anchor": "", "positive": "x"}], 5)
    with pytest.raises(EmbedlossError, match="has no column 'positive'"):
        sampler_of([{"anchor": "a"}] * 2, 5)
    with pytest.raises(EmbedlossError, match="holds one row"):
        sampler_of([{"anchor": "a", "positive": "b"}], 5)
    with pytest.raises(EmbedlossError, match=r"a step takes 50 rows, and 40 are shuffled together: type --shuffle-buffer 500"):
        sampler_of(Numbered(100), 5, batch=50)
    with pytest.raises(EmbedlossError, match="holds no rows"):
        sampler_of([], 5)


def test_several_streams_keep_their_shares_at_any_time():
    parts = {name: Stream.of(Numbered(100), PAIRS, "pairs", 40, weight=w) for name, w in (("a", 6), ("b", 3), ("c", 1))}
    names = [rows[0]["_dataset"] for rows in StreamSampler(Streams(parts), 4, 300)]
    for end in (10, 57, 300):
        found = Counter(names[:end])
        assert all(abs(found[name] - share * end) <= 1 for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)))
    with pytest.raises(EmbedlossError, match="needs the length of each data set"):
        Streams(parts, "proportional")


def test_memory_holds_one_block():
    rows = Numbered(10**6)
    reader = iter(sampler_of(rows, 100))
    for _ in range(6):
        next(reader)
    assert rows.read <= 40 + 2 * 40 + 1  # the first rows, and two blocks


def make_trainer(model, out, data, *, steps=12, **more):
    torch.manual_seed(0)
    encoder = load_encoder(model)
    step = TrainingStep(encoder, Nce(), seed=3)
    settings = {"save_steps": 5, "logging_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 8, **more}
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, save_total_limit=3, report_to="none", disable_tqdm=True, seed=3, use_cpu=True,
        **settings,
    )  # fmt: skip
    return Trainer(step, arguments, train_dataset=data, collator=Collator(encoder.processor, step.loss, "pairs", 500))


def stream(rows=100):
    return Streams({"": Stream.of(Numbered(rows), PAIRS, "pairs", 40)})


def same(one, two):
    expected, found = one.step_module.state_dict(), two.step_module.state_dict()
    return all(torch.equal(expected[n], found[n]) for n in expected)


def test_a_resumed_run_equals_an_uninterrupted_one_with_and_without_workers(model, tmp_path):
    whole = make_trainer(model, tmp_path / "whole", stream(), gradient_accumulation_steps=2)
    whole.train()
    workers = make_trainer(model, tmp_path / "part", stream(), gradient_accumulation_steps=2, dataloader_num_workers=2)
    workers.train()
    assert same(whole, workers)
    again = make_trainer(model, tmp_path / "part", stream(), gradient_accumulation_steps=2)
    rows = again.train_dataset.parts[""].source.rows
    rows.read = 0
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-10"))
    assert same(whole, again)
    logs = [[(e["step"], e["epoch"], e["loss"]) for e in t.state.log_history if "loss" in e] for t in (whole, again)]
    assert logs[0] == logs[1]
    (tmp_path / "part" / "checkpoint-10" / "stream.json").unlink()
    with pytest.raises(EmbedlossError, match=r"stream\.json is missing") as caught:
        make_trainer(model, tmp_path / "part", stream()).train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-10"))
    assert caught.value.code == "E403"


def test_the_trainer_takes_an_iterable_data_set(model, tmp_path):
    trainer = make_trainer(model, tmp_path, generated(100), steps=3, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 3
    with pytest.raises(EmbedlossError, match="a stream has no length; give max_steps"):
        make_trainer(model, tmp_path, generated(100), steps=-1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a stream has no length; type --max-steps N with --streaming"),
        ({"max_steps": 5, "cache_guide": True}, "--cache-guide encodes all texts before training"),
        ({"max_steps": 5, "scale_labels": True}, "--scale-labels needs all labels before training"),
        ({"max_steps": 5, "shuffle_buffer": 1}, "'shuffle_buffer' must be at least 2, got 1"),
        ({"max_steps": 5, "stop": "all-exhausted", "data": {"a": "x", "b": "y"}}, "--stop has no effect on streams"),
        ({"max_steps": 5, "mix": "proportional", "data": {"a": "x", "b": "y"}}, "--mix proportional needs the length"),
        ({"streaming": False, "shuffle_buffer": 5}, "'shuffle_buffer' has no effect without --streaming"),
    ],
)
def test_settings_that_streams_do_not_take(values, message):
    config = RunConfig.from_mapping({"model": "m", "out": "o", "loss": "mnrl", "data": "x", "streaming": True, **values})
    with pytest.raises(EmbedlossError) as caught:
        config.validate()
    assert caught.value.code == "E401"
    assert message in str(caught.value)


def test_positions_are_plain_data():
    position = Position(1, 20, {"row": 20}, 3, 2, (((1, 4, 0), {"anchor": "a"}),))
    assert Position.from_json(json.loads(json.dumps(position.to_json()))) == position
