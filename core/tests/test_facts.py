"""What rows have in common, against plain loops; and that files read in chunks are the files."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from embedloss import chunks as chunks_module
from embedloss.chunks import Chunks, rows_of
from embedloss.data import load_rows
from embedloss.errors import EmbedlossError
from embedloss.examine import examine
from embedloss.facts import BATCH, Bag
from embedloss.formats import get_format
from embedloss.spec import LossSpec


def save(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def tuples(n, seed, texts=12):
    rng = random.Random(seed)

    def text(kind):
        return f"{kind} {rng.randrange(texts)}"

    return [
        {"anchor": text("q"), "positive": text("d"), "negative": [text("d") for _ in range(rng.randrange(1, 4))]}
        for _ in range(n)
    ]


@pytest.fixture(params=[10_000, 7], ids=["one chunk", "chunks of 7"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(chunks_module, "ROWS", request.param)


@pytest.mark.parametrize("seed", range(3))
def test_tuples_against_plain_loops(tmp_path, chunk, seed):
    rows, dev = tuples(90, seed), tuples(30, seed + 100)
    found = examine(save(tmp_path / "a.jsonl", rows), eval_data=save(tmp_path / "b.jsonl", dev))
    facts = found.facts
    whole = Counter((r["anchor"], r["positive"], tuple(sorted(r["negative"]))) for r in rows)
    assert facts.rows == 90
    assert facts.duplicate_rows == sum(count - 1 for count in whole.values())
    positives = {(r["anchor"], r["positive"]) for r in rows}
    assert facts.false_negatives == sum((r["anchor"], text) in positives for r in rows for text in r["negative"])
    assert facts.false_negatives > 0
    assert facts.repeated_docs == sum(len(set(r["negative"])) < len(r["negative"]) for r in rows)
    for role, other in (("anchor", "positive"), ("positive", "anchor")):
        counts = Counter(r[role] for r in rows)
        partners = {text: {r[other] for r in rows if r[role] == text} for text in counts}
        repeats = facts.repeats[role]
        assert repeats.distinct == len(counts)
        assert repeats.repeated_rows == sum(counts.values()) - len(counts)
        assert repeats.shared == sum(len(p) > 1 for p in partners.values())
        # Rows i < j that share the text, times the chance that both are in a batch of 64.
        same = sum(rows[i][role] == rows[j][role] for i in range(90) for j in range(i))
        assert repeats.in_batch == pytest.approx(same * BATCH * (BATCH - 1) / (90 * 89))
    queries = {r["anchor"] for r in dev}
    wholes = {(r["anchor"], r["positive"], tuple(sorted(r["negative"]))) for r in dev}
    assert facts.overlap_queries == sum(r["anchor"] in queries for r in rows)
    assert facts.overlap_rows == sum((r["anchor"], r["positive"], tuple(sorted(r["negative"]))) in wholes for r in rows)
    lengths = sorted(len(r["negative"]) for r in rows)
    assert facts.texts_per_row["negative"]["max"] == lengths[-1]
    assert facts.texts_per_row["negative"]["mean"] == pytest.approx(np.mean(lengths), abs=0.05)
    characters = [len(r["anchor"]) for r in rows]
    assert facts.characters["anchor"]["mean"] == pytest.approx(np.mean(characters), abs=0.05)
    assert (facts.characters["anchor"]["min"], facts.characters["anchor"]["max"]) == (min(characters), max(characters))


def test_scores_and_classes(tmp_path, chunk):
    rng = random.Random(0)
    rows = [
        {"sentence1": f"a {rng.randrange(5)}", "sentence2": f"b {rng.randrange(5)}", "score": rng.randrange(3) / 2}
        for _ in range(60)
    ]
    facts = examine(save(tmp_path / "a.jsonl", rows)).facts
    labels = {}
    for row in rows:
        labels.setdefault((row["sentence1"], row["sentence2"]), set()).add(row["score"])
    assert facts.conflicting == sum(len(found) > 1 for found in labels.values()) > 0
    assert facts.label_values == dict(sorted(Counter(row["score"] for row in rows).items()))
    assert facts.label_span == (0.0, 1.0)
    same = [{"anchor": f"t {i % 7}", "positive": f"t {i % 5}"} for i in range(35)]
    assert examine(save(tmp_path / "b.jsonl", same)).facts.same_text == sum(r["anchor"] == r["positive"] for r in same)


def test_sizes_of_classes(tmp_path, chunk):
    names = ["a"] * 9 + ["b"] * 4 + ["c"]
    report = examine(save(tmp_path / "a.jsonl", [{"text": f"t {i}", "label": n} for i, n in enumerate(names)])).report
    assert report.class_sizes == {"classes": 3, "smallest": 1, "median": 4, "largest": 9, "single": 1}
    assert report.classes == {"a": 0, "b": 1, "c": 2}


# -- counting ---------------------------------------------------------------------------------------------------------
def hashes(rng, n, different):
    pool = rng.integers(0, 2**64, different, dtype=np.uint64)
    return pool[rng.integers(0, different, n)]


def test_a_bag_counts_exactly_below_its_capacity():
    rng = np.random.default_rng(0)
    keys, values = hashes(rng, 5000, 300), hashes(rng, 5000, 4)
    bag = Bag(capacity=2000)
    for begin in range(0, 5000, 700):
        bag.add(keys[begin : begin + 700], values[begin : begin + 700])
    wanted = Counter(zip(keys.tolist(), values.tolist(), strict=True))
    assert dict(zip(zip(*(a.tolist() for a in bag.pairs()[:2]), strict=True), bag.pairs()[2].tolist(), strict=True)) == wanted
    assert bag.factor == 1
    found, kinds, counts = bag.by_key()
    by_key = {}
    for (key, value), count in wanted.items():
        by_key.setdefault(key, []).append((value, count))
    assert found.tolist() == sorted(by_key)
    assert kinds.tolist() == [len(by_key[k]) for k in sorted(by_key)]
    assert counts.tolist() == [sum(c for _, c in by_key[k]) for k in sorted(by_key)]


def test_a_bag_estimates_above_it():
    rng = np.random.default_rng(1)
    keys = hashes(rng, 40_000, 20_000)
    bag = Bag(capacity=1000)
    for begin in range(0, len(keys), 1000):
        part = keys[begin : begin + 1000]
        bag.add(part, part)
    found, _, counts = bag.by_key()
    assert len(found) <= 1000
    assert bag.factor > 1
    exact = Counter(keys.tolist())
    assert counts.tolist() == [exact[k] for k in found.tolist()]  # what is followed is followed from the first row to the last
    assert len(found) * bag.factor == pytest.approx(len(exact), rel=0.15)
    assert counts.sum() * bag.factor == pytest.approx(len(keys), rel=0.15)


# -- chunks -----------------------------------------------------------------------------------------------------------
FILES = {
    "late.jsonl": "".join(json.dumps({"a": i, **({"b": "x"} if i > 20 else {})}) + "\n" for i in range(30)),
    "numbers.jsonl": "".join(json.dumps({"a": i if i < 15 else i / 2}) + "\n" for i in range(30)),
    "lists.jsonl": "".join(json.dumps({"a": [], "b": None} if i < 12 else {"a": ["x"], "b": 1}) + "\n" for i in range(30)),
    "cells.csv": "a,b,c\n" + "".join(f"{i if i < 20 else 'x'},{i}, \n" for i in range(30)),
    "cells.tsv": "a\tb\n" + "".join(f"{i / 2}\t[{i}]\n" for i in range(30)),
}


@pytest.mark.parametrize("name", FILES)
def test_chunks_are_the_file(tmp_path, chunk, name):
    path = tmp_path / name
    path.write_text(FILES[name])
    read = Chunks(path)
    whole = load_rows(path)
    assert list(rows_of(read)) == whole.to_list()
    assert list(rows_of(read)) == whole.to_list()  # once more
    from embedloss.check import column_kinds

    assert read.kinds() == column_kinds(whole)
    whole.to_parquet(str(tmp_path / "x.parquet"))
    assert list(rows_of(Chunks(tmp_path / "x.parquet"))) == whole.to_list()


def test_types_that_do_not_agree_name_the_row(tmp_path, chunk):
    path = save(tmp_path / "a.jsonl", [{"a": "x"}] * 20 + [{"a": 1}] * 10)
    with pytest.raises(EmbedlossError, match=r"E104: column 'a' of .*a.jsonl' mixes types: row (15|21|22) holds"):
        list(Chunks(path))


# -- options ----------------------------------------------------------------------------------------------------------
def test_a_loss_decides_what_is_a_fault(tmp_path):
    path = save(tmp_path / "a.jsonl", [{"sentence1": f"a {i}", "sentence2": "b", "score": i} for i in range(6)])
    narrow = LossSpec(
        name="narrow", target="m:M", summary="", family="", formats=(get_format("pairs+score"),), label_range=(0.0, 1.0)
    )
    assert examine(path, spec=narrow).report.faults[0].rows == (3, 4, 5, 6)
    assert not examine(path, spec=narrow, scale_labels=True).report.faults
    assert not examine(path).report.faults
    grouped = LossSpec(name="grouped", target="m:M", summary="", family="", formats=("single+class",), sampler="group-by-label")
    path = save(tmp_path / "b.jsonl", [{"text": f"t {i}", "label": i // 2} for i in range(7)])
    assert examine(path, spec=grouped).report.faults[0].rows == (7,)
    assert not examine(path, spec=grouped, sampler="random").report.faults


def test_lengths_in_tokens(tmp_path):
    rows = [{"text": "word " * (1 + i % 5)} for i in range(50)]
    found = examine(save(tmp_path / "a.jsonl", rows), tokenizer=lambda texts: [len(t.split()) for t in texts], max_length=3)
    assert found.facts.tokens["text"] == {"min": 1, "mean": 3.0, "median": 3, "p95": 5, "max": 5, "cut": 0.4}
    assert any("40.0% of 'text' are longer than the model reads" in note for note in found.notes)


def test_columns_left_out_of_the_evaluation_data(tmp_path):
    rows = [{"anchor": f"a {i}", "positive": f"b {i}", "topic": "x"} for i in range(4)]
    path = save(tmp_path / "a.jsonl", rows)
    with pytest.raises(EmbedlossError, match="E102"):
        examine(path, eval_data=path)
    assert examine(path, eval_data=path, drop=["topic"]).facts.overlap_rows == 4
    assert examine(path, eval_data=path, loosely=True).facts.overlap_rows == 4
