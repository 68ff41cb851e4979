"""Rows as people have them, from the command line to a trained model: lists, gaps, ids, prompts, weights."""

import json
import random

import pyarrow as pa
import pyarrow.parquet
import pytest

WORDS = "river stone cloud ember willow falcon copper lantern meadow harbor violin saddle thunder basket marble".split()  # noqa: SIM905
RNG = random.Random(0)
TEXTS = [" ".join(RNG.sample(WORDS, 4)) for _ in range(80)]
PAIRS = [{"query": TEXTS[i], "answer": TEXTS[40 + i]} for i in range(16)]
TRAIN = ("--model", "static(dimension=8)", "--out", "run", "--max-steps", "3", "--batch-size", "4", "--logging-steps", "1")


def trained(run, tmp_path, *options):
    done = run("train", *TRAIN, *options)
    assert done.status == 0, done.err
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def test_lists_of_different_lengths(run, write, tmp_path):
    write("data.jsonl", [{**row, "negative": TEXTS[i : i + 1 + i % 3]} for i, row in enumerate(PAIRS)])
    assert trained(run, tmp_path, "--data", "data.jsonl", "--loss", "mnrl")


@pytest.mark.parametrize("gap", [[], None], ids=["empty list", "null"])
def test_rows_without_negatives(run, write, tmp_path, gap):
    """In-batch losses take them; losses that compare with the row's own negatives do not."""
    rows = [{**row, "negative": TEXTS[i : i + 2] if i % 4 == 0 else gap} for i, row in enumerate(PAIRS)]
    write("data.jsonl", rows)
    checked = run("check", "data.jsonl", "--loss", "mnrl")
    assert checked.status == 0
    assert "12 rows hold no text of 'negative'" in " ".join(checked.out.split())
    assert trained(run, tmp_path, "--data", "data.jsonl", "--loss", "mnrl")
    assert trained(run, tmp_path, "--data", "data.jsonl", "--loss", "matryoshka(mnrl, dims=[8, 4])", "--overwrite")
    refused = run("train", *TRAIN, "--data", "data.jsonl", "--loss", "triplet", "--overwrite")
    assert refused.err.startswith("E104")
    assert "rows 2, 3, 4, 6, 7 and 7 more" in " ".join(refused.err.split())
    columns = {"query": TEXTS[:4], "answer": TEXTS[4:8], "negative": pa.array([gap] * 4, pa.list_(pa.string()))}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "none.parquet")
    refused = run("check", "none.parquet", "--loss", "mnrl")
    assert refused.err.startswith("E104: column 'negative': no row holds a text of 'negative'. Type --drop negative")


def test_rows_without_negatives_are_rows_of_pairs(run, write, tmp_path):
    """A batch in which no row has a negative has the loss of the pairs."""
    write("pairs.jsonl", PAIRS)
    write("gaps.jsonl", [*({**row, "negative": []} for row in PAIRS[:15]), {**PAIRS[15], "negative": ["x"]}])
    assert run("init-static", "pairs.jsonl", "model", "--dim", "8").status == 0
    options = ("--model", "model", "--loss", "mnrl", "--sampler", "random", "--learning-rate", "1e-9")
    losses = [
        [entry["loss"] for entry in trained(run, tmp_path, "--data", data, *options, "--overwrite") if "loss" in entry]
        for data in ("pairs.jsonl", "gaps.jsonl")
    ]
    assert len(losses[0]) == 3
    same = [a == pytest.approx(b, abs=1e-4) for a, b in zip(*losses, strict=True)]
    assert sum(same) >= 2  # one batch may hold the row with a negative


def test_numbered_columns_with_gaps(run, write, tmp_path):
    rows = [{**row, "negative_1": TEXTS[i], "negative_2": TEXTS[i + 1] if i % 2 else None} for i, row in enumerate(PAIRS)]
    write("data.jsonl", rows)
    assert trained(run, tmp_path, "--data", "data.jsonl", "--loss", "mnrl")


def test_several_positives_of_a_query(run, write, tmp_path):
    """One row each; the sampler keeps rows of one query apart."""
    rows = [{**row, "query": TEXTS[i // 2]} for i, row in enumerate(PAIRS)]
    write("data.jsonl", rows)
    checked = run("check", "data.jsonl")
    assert "false negatives" in " ".join(checked.out.split())
    assert trained(run, tmp_path, "--data", "data.jsonl", "--loss", "mnrl")


def test_ids_in_place_of_texts(run, write, tmp_path):
    write("corpus.jsonl", [{"doc_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS[40:])])
    write("queries.jsonl", [{"query_id": f"q{i}", "text": text} for i, text in enumerate(TEXTS[:20])])
    write("qrels.jsonl", [{"query_id": f"q{i}", "doc_id": f"d{i}", "score": 1} for i in range(16)])
    files = ("--corpus", "corpus.jsonl", "--queries", "queries.jsonl")
    for target in ("pairs", "n-tuples", "listwise"):
        out = f"{target}.jsonl"
        done = run("convert", "qrels.jsonl", *files, "--to", target, "--out", out)
        assert done.status == 0, done.err
    made = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(r["anchor"], r["positive"]) for r in made] == [(r["query"], r["answer"]) for r in PAIRS]
    assert trained(run, tmp_path, "--data", "n-tuples.jsonl", "--loss", "mnrl")
    hint = run("train", *TRAIN, "--data", "qrels.jsonl", "--loss", "mnrl", "--overwrite")
    assert hint.status == 1


def test_prompts_go_to_their_role(run, write, tmp_path):
    write("data.jsonl", PAIRS)
    options = ("--data", "data.jsonl", "--loss", "mnrl", "--learning-rate", "1e-9")
    plain = trained(run, tmp_path, *options)
    prompted = trained(run, tmp_path, *options, "--prompt", "anchor=thunder basket marble ", "--overwrite")
    assert [e["loss"] for e in plain if "loss" in e] != [e["loss"] for e in prompted if "loss" in e]
    refused = run("train", *TRAIN, *options, "--prompt", "query=search: ", "--overwrite")
    assert refused.err.startswith("E401: prompt for the unknown role 'query'. Roles: anchor, positive.")


def test_weights_of_rows(run, write, tmp_path):
    write("data.jsonl", [{**row, "weight": float(i == 0)} for i, row in enumerate(PAIRS)])
    checked = run("check", "data.jsonl", "--loss", "mnrl")
    assert "the row's loss is multiplied by it" in " ".join(checked.out.split())
    takers = json.loads(run("check", "data.jsonl", "--json").out)["losses"]
    assert "multiple-negatives-ranking" in takers
    assert "contrastive-tension" not in takers
    options = ("--data", "data.jsonl", "--loss", "mnrl", "--learning-rate", "1e-9")
    one = trained(run, tmp_path, *options)
    every = trained(run, tmp_path, *options, "--drop", "weight", "--overwrite")
    assert one[-1]["train_loss"] < every[-1]["train_loss"] / 2
    assert trained(run, tmp_path, *options, "--streaming", "--overwrite")
    write(
        "scores.jsonl",
        [{"first": r["query"], "second": r["answer"], "score": i / 20, "weight": 1} for i, r in enumerate(PAIRS)],
    )
    refused = run("train", *TRAIN, "--data", "scores.jsonl", "--loss", "cosent", "--overwrite")
    assert refused.err.startswith("E102: the column 'weight' would not be used: 'cosent' gives rows no weights.")
    assert "--drop weight" in refused.err
    assert "cosine-similarity" in refused.err
    assert run("check", "scores.jsonl", "--loss", "cosent").status == 1
    assert run("suggest", "scores.jsonl").status == 0


def test_a_missing_negative_in_a_column_of_texts(run, write, tmp_path):
    write("data.jsonl", [{**row, "negative": None if i % 3 else TEXTS[i]} for i, row in enumerate(PAIRS)])
    assert run("check", "data.jsonl", "--loss", "mnrl").status == 0
    for more in ((), ("--streaming", "--overwrite")):
        assert trained(run, tmp_path, "--data", "data.jsonl", "--loss", "mnrl", *more)
    refused = run("train", *TRAIN, "--data", "data.jsonl", "--loss", "triplet", "--overwrite")
    assert refused.err.startswith("E104: column 'negative', rows 2, 3, 5, 6, 8")


def test_a_list_of_positives_is_converted(run, write, tmp_path):
    rows = [
        {"query": row["query"], "positive": [row["answer"], f"{row['answer']} again"][: i % 3]} for i, row in enumerate(PAIRS)
    ]
    write("data.jsonl", rows)
    refused = run("train", *TRAIN, "--data", "data.jsonl", "--loss", "mnrl")
    assert refused.err.startswith("E104: 'multiple-negatives-ranking' cannot use a column.")
    assert "embedloss convert DATA --to pairs --out FILE" in " ".join(refused.err.split())
    assert run("check", "data.jsonl").status == 1
    done = run("convert", "data.jsonl", "--to", "pairs", "--out", "pairs.jsonl")
    assert done.status == 0
    assert "each of their texts makes a row" in " ".join(done.out.split())
    made = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert made == [{"anchor": r["query"], "positive": text} for r in rows for text in r["positive"]]
    assert trained(run, tmp_path, "--data", "pairs.jsonl", "--loss", "mnrl(positives='mean')", "--sampler", "random")
