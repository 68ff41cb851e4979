"""`embedloss mine` from a user's side: a file in, a file out that trains, figures that fit the terminal."""

import json
import random

import pytest

WORDS = [
    "river",
    "stone",
    "cloud",
    "ember",
    "willow",
    "falcon",
    "copper",
    "lantern",
    "meadow",
    "harbor",
    "violin",
    "saddle",
    "thunder",
    "basket",
    "marble",
]


@pytest.fixture
def files(write, tmp_path):
    from embedloss.encoders import new_static_encoder

    rng = random.Random(0)
    texts = [" ".join(rng.sample(WORDS, 5)) for _ in range(60)]
    pairs = [{"query": texts[i], "answer": texts[30 + i]} for i in range(30)]
    write("pairs.jsonl", pairs)
    new_static_encoder(texts, dimension=16, vocab_size=200).save(tmp_path / "model")
    return pairs


def test_pairs_become_tuples_that_train(run, files, tmp_path):
    done = run("mine", "pairs.jsonl", "--model", "model", "--num-negatives", 2, "--out", "hard.jsonl")
    assert done.status == 0, done
    assert "pairs.jsonl: 30 pairs, 30 queries, 30 documents searched" in done.out
    assert "difference" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert not (tmp_path / "hard.jsonl.work").exists()
    made = [json.loads(line) for line in (tmp_path / "hard.jsonl").read_text().splitlines()]
    assert len(made) == 30
    assert all(len(row["negative"]) == 2 for row in made)
    options = ("--loss", "mnrl", "--out", "run", "--max-steps", 2, "--batch-size", 8)
    assert run("train", "--model", "model", "--data", "hard.jsonl", *options).status == 0
    assert run("mine", "pairs.jsonl", "--model", "model", "--out", "hard.jsonl").err.startswith("E402")


def test_json_and_kept_work(run, files, tmp_path):
    options = ("--model", "model", "--to", "labeled-list", "--work", "kept", "--relative-margin", 0.1)
    done = run("mine", "pairs.jsonl", *options, "--out", "lists.parquet", "--json")
    report = done.json
    assert report["target"] == "listwise"
    assert report["parameters"]["range_max"] == 30
    assert report["scores"]["difference"]["min"] > 0
    assert report["queries"] == 30 == report["rows_out"] + report["without"]
    assert list((tmp_path / "kept").glob("embeddings-*.npy"))
    again = run("mine", "pairs.jsonl", *options, "--out", "again.parquet", "--json").json
    assert again["scores"] == report["scores"]
    assert (tmp_path / "lists.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
