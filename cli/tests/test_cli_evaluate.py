"""evaluate, encode and compare as commands."""

import json
import re

import numpy as np
import pytest

TOPICS = {
    "open a compressed file": "gzip reads and writes archives that were made smaller",
    "sort a list of numbers": "ordering values from the smallest to the largest",
    "send a mail message": "smtp delivers letters to a mailbox on a server",
    "draw a picture of a curve": "plot lines and points on a canvas with colours",
}


@pytest.fixture
def pairs(write):
    return write("pairs.jsonl", [{"anchor": f"{q} {i}", "positive": f"{d} {i}"} for i in range(12) for q, d in TOPICS.items()])


@pytest.fixture
def model(run, pairs):
    assert run("init-static", pairs, "model", "--dim", "16", "--vocab-size", "200", "--seed", "3").status == 0
    return "model"


@pytest.fixture
def folder(write):
    write("set/corpus.jsonl", [{"_id": f"d{i}", "title": "On", "text": text} for i, text in enumerate(TOPICS.values())])
    write("set/queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate([*TOPICS, "no answer"])])
    write("set/qrels/test.tsv", "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t{1 + i % 2}\n" for i in range(4)))
    return "set"


def test_a_folder_is_searched(run, model, folder):
    result = run("evaluate", model, folder, "--k", "1,3", "--baselines", "--precision", "int8,binary", "--dims", "8")
    assert result.status == 0, result
    assert result.out.startswith("set: 5 queries, 4 documents, 4 judgements\n")
    assert "1 queries without a relevant document are left out" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    lines = [re.split(r"  +", line) for line in result.out.splitlines()]
    names = [line[0] or line[1] for line in lines if len(line) > 2 and not line[0].startswith("--")]
    assert names[:10] == [
        "model", "random", "BM25", "static, untrained", "model", "int8", "binary", "8", "8/int8", "8/binary",
    ]  # fmt: skip
    found = run("evaluate", model, folder, "--k", "1,3", "--json").json
    assert found["format"] == "collection"
    assert {"ndcg@1", "mrr@3", "recall@3", "map@100", "queries_excluded"} <= set(found["metrics"])
    assert found["metrics"]["queries"] == 4


def test_several_data_sets_and_chosen_metrics(run, model, folder, pairs):
    found = run("evaluate", model, folder, pairs, "--metrics", "mrr@10", "--k", "10", "--json")
    assert (found.status, found.err[:4]) == (1, "E501")  # ten of four documents
    found = run("evaluate", model, folder, pairs, "--metrics", "mrr@10", "--json")
    assert found.status == 0, found
    first, second = found.json["results"]
    assert set(first["metrics"]) == {"mrr@10", "queries", "documents", "queries_excluded"}
    assert set(second["metrics"]) == {"mrr@10", "queries", "documents"}
    shown = run("evaluate", model, pairs, "--metrics", "mrr@10")
    assert "mrr@10" in shown.out
    assert "ndcg" not in shown.out


def test_a_curve_is_drawn(run, model, pairs, tmp_path):
    assert run("evaluate", model, pairs, "--dims", "4,8", "--plot", "curve.png").status == 0
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    refused = run("evaluate", model, pairs, "--plot", "other.png")
    assert (refused.status, refused.err[:4]) == (1, "E401")


def test_a_second_model_and_baselines(run, model, pairs):
    assert run("init-static", pairs, "other", "--dim", "16", "--vocab-size", "200", "--seed", "4").status == 0
    lines = run("evaluate", model, pairs, "--compare", "other").out.splitlines()
    assert lines[-4].split()[:1] == ["recall@10"]
    assert len(lines[-4].split()) == 3
    found = run("evaluate", model, pairs, "--compare", "other", "--baselines", "--json").json
    assert set(found["baselines"]) == {"random", "BM25", "static, untrained"}
    assert found["baselines"]["BM25"]["mrr@10"] > found["baselines"]["random"]["mrr@10"]
    assert found["compare"]["metrics"] != found["metrics"]


# -- encode -------------------------------------------------------------------------------------------------------------------
def test_encode_writes_arrays_and_tables(run, model, pairs, tmp_path):
    from datasets import load_dataset

    from embedloss import load_encoder

    assert run("encode", model, pairs, "--column", "anchor", "--out", "a.npy", "--truncate-dim", "8", "--normalize").status == 0
    result = run("encode", model, pairs, "--column", "anchor", "--out", "sub/a.parquet")
    assert result.status == 0, result
    assert result.out == "sub/a.parquet: 48 embeddings of dimension 16\n"
    texts = [json.loads(line)["anchor"] for line in pairs.read_text().splitlines()]
    wanted = load_encoder(tmp_path / model).encode(texts)
    table = load_dataset(
        "parquet", data_files=str(tmp_path / "sub/a.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table["text"][:] == texts
    np.testing.assert_allclose(np.array(table["embedding"][:]), wanted, atol=1e-6)
    short = wanted[:, :8] / np.linalg.norm(wanted[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), short, atol=1e-6)
    assert not list(tmp_path.rglob("*.parts"))


# -- compare ------------------------------------------------------------------------------------------------------------------
def test_compare(run, model, pairs, tmp_path):
    arguments = ["compare", pairs, "--model", model, "--losses", "mnrl(scale=20), mega-batch-margin", "--max-steps", "3"]
    arguments += ["--seeds", "2", "--batch-size", "8", "--learning-rate", "0.05", "--out", "runs"]
    result = run(*arguments)
    assert result.status == 0, result
    assert "4/4 mega-batch-margin, seed 1, 3 steps: ndcg@10" in " ".join(result.err.split())
    assert max(map(len, result.out.split("\nTo train")[0].splitlines())) <= 80
    assert re.search(r"^ 1 +\S+ +[01]\.\d{4} ± 0\.\d{4} +[+-]0\.\d{4} +3 +\d+ s +[\d,]+ MB", result.out, re.MULTILINE), (
        result.out
    )
    for name in ("untrained", "BM25", "random"):
        assert re.search(rf"^ +{name} +0\.\d{{4}} ", result.out, re.MULTILINE)
    command = result.out.splitlines()[-1]
    assert command.startswith("embedloss train --model model --data")
    found = run(*arguments, "--json")  # nothing is trained again
    assert found.err == ""
    assert [len(s["values"]) for s in found.json["standings"]] == [2, 2]
    assert found.json["command"] == command
    assert not list((tmp_path / "runs" / "runs").rglob("*.safetensors"))
    assert "runs/report.html" in result.out.splitlines()
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "ndcg@10" in page
    assert "mega-batch-margin" in page


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        (" a ( x=[1, 2] ) , b", ["a ( x=[1, 2] )", "b"]),
        ("gist(guide='x, y'), a + 0.1 * b", ["gist(guide='x, y')", "a + 0.1 * b"]),
        ("", []),
    ],
)
def test_losses_are_split_at_commas_outside_of_brackets(text, parts):
    from embedloss_cli.compare import expressions

    assert expressions(text) == parts
