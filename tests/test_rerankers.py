"""Cross-encoders through the command line, the trainer and the evaluation, and score losses on both kinds of model."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from embedloss import EmbedlossError, create_loss, load_encoder
from embedloss.collate import Collator
from embedloss.encoders import kind_of
from embedloss.evaluation import bm25_scores, evaluate, list_baselines
from embedloss.evaluation.metrics import reranking_metrics
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import TrainingStep
from embedloss_cli.__main__ import run

WORDS = sorted({w for s in SENTENCES for w in s.split()})


def texts(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(1, longest)))) for _ in range(count)]


def lists(rows=12, seed=0, sizes=(2, 5)):
    rng = np.random.default_rng(seed)
    made = []
    for i, query in enumerate(texts(rows, seed)):
        docs = texts(int(rng.integers(*sizes)), 100 * seed + i)
        made.append({"query": query, "docs": docs, "grades": [2, 0, *rng.integers(0, 3, len(docs) - 2).tolist()]})
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A plain transformer, the bi-encoder and the cross-encoder made of it, and one file for every format."""
    folder = tmp_path_factory.mktemp("rerankers")
    tiny_bert(folder / "bi")
    shutil.copytree(folder / "bi", folder / "plain")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / "plain" / name).unlink()
    load_encoder(folder / "plain", "cross-encoder", seed=1).save(folder / "cross")
    load_encoder(folder / "plain", "cross-encoder", num_labels=3, seed=1).save(folder / "three")
    first, second = texts(24, 1), texts(24, 2)
    write(folder / "listwise.jsonl", lists())
    write(
        folder / "score.jsonl",
        [{"first": a, "second": b, "score": i / 23} for i, (a, b) in enumerate(zip(first, second, strict=True))],
    )
    write(
        folder / "class.jsonl",
        [{"first": a, "second": b, "label": "xyz"[i % 3]} for i, (a, b) in enumerate(zip(first, second, strict=True))],
    )
    tuples = [{"query": a, "positive": b, "negative": texts(2, i)} for i, (a, b) in enumerate(zip(first, second, strict=True))]
    write(folder / "tuples.jsonl", [{"anchor" if k == "query" else k: v for k, v in row.items()} for row in tuples])
    write(folder / "margins.jsonl", [{**row, "margins": [0.5, 1.0]} for row in tuples])
    write(folder / "scores.jsonl", [{**row, "scores": [2.0, 1.0, 0.0]} for row in tuples])
    return folder


def train(work, out, loss, data, model="plain", *more):
    options = ["--max-steps", "4", "--batch-size", "4", "--learning-rate", "1e-3", "--save-steps", "0", "--warmup", "0"]
    words = ["train", "--model", str(work / model), "--data", str(work / f"{data}.jsonl"), "--loss", loss, "--out", str(out)]
    return run([*words, *options, *more])


# -- which kind of model ------------------------------------------------------------------------------------------------
def test_what_a_folder_is(work):
    assert [kind_of(work / name) for name in ("plain", "bi", "cross")] == [None, "bi-encoder", "cross-encoder"]


@pytest.mark.parametrize(
    ("loss", "data", "model", "options", "kind"),
    [
        ("list-net", "listwise", "plain", "", "bi-encoder"),
        ("list-net", "listwise", "bi", "", "bi-encoder"),
        ("list-net", "listwise", "cross", "", "cross-encoder"),
        ("list-net", "listwise", "bi", "--kind cross-encoder", "cross-encoder"),
        ("ce-mnrl", "tuples", "plain", "", "cross-encoder"),
    ],
)
def test_the_folder_decides_where_a_loss_trains_both(work, tmp_path, capsys, loss, data, model, options, kind):
    assert train(work, tmp_path / "out", loss, data, model, *shlex.split(options), "--max-steps", "1") == 0
    assert kind_of(tmp_path / "out") == kind
    said = "has no ranking head" in capsys.readouterr().out
    assert said == (kind == "cross-encoder" and model != "cross")


@pytest.mark.parametrize(
    ("loss", "data", "model", "options", "code", "words"),
    [
        ("list-net", "listwise", "cross", "--kind bi-encoder", "E302", "'.*cross' is a cross-encoder.*Leave out --kind"),
        ("mnrl", "tuples", "cross", "", "E302", "trains bi-encoders; '.*cross' is a cross-encoder"),
        ("ce-mnrl", "tuples", "bi", "", "E302", "is a bi-encoder. *Type --kind cross-encoder"),
        ("mnrl", "tuples", "bi", "--kind cross-encoder", "E302", "--kind cross-encoder is not possible"),
        ("list-net", "listwise", "bi", "--kind reranker", "E401", "bi-encoder or cross-encoder"),
        ("list-net", "listwise", "three", "", "E302", "one score a pair; this cross-encoder has 3 outputs"),
        ("cross-entropy", "class", "cross", "", "E105", "3 classes, but the number of the model's outputs is 1"),
        ("list-net", "listwise", "cross", "--prompt docs=x", "E401", "only 'query' takes a prompt"),
    ],
)
def test_models_that_do_not_fit_are_refused(work, tmp_path, capsys, monkeypatch, loss, data, model, options, code, words):
    monkeypatch.setenv("COLUMNS", "400")
    assert train(work, tmp_path / "out", loss, data, model, *shlex.split(options)) == 1
    error = capsys.readouterr().err.replace("\n", " ")
    assert error.startswith(f"{code}: ")
    assert re.search(words, error), error
    assert not (tmp_path / "out").exists()


# -- training -----------------------------------------------------------------------------------------------------------
BOTH = [
    ("lambda_loss(k=3)", "listwise"), ("rank_net()", "listwise"), ("list_net()", "listwise"), ("adr_mse()", "listwise"),
    ("list_mle(respect_input_order=False)", "listwise"), ("plist_mle(respect_input_order=False)", "listwise"),
    ("bce()", "score"), ("score_mse()", "score"), ("margin_mse()", "margins"), ("distill_kl_div()", "scores"),
]  # fmt: skip
CROSS_ONLY = [("ce_mnrl(num_negatives=2)", "tuples"), ("ce_cmnrl()", "tuples"), ("cross_entropy()", "class")]


@pytest.mark.parametrize(
    ("kind", "loss", "data"),
    [(kind, *case) for kind in ("bi-encoder", "cross-encoder") for case in BOTH]
    + [("cross-encoder", *case) for case in CROSS_ONLY],
)
def test_every_score_loss_trains(work, tmp_path, kind, loss, data):
    out = tmp_path / "out"
    assert train(work, out, loss, data, "plain", "--kind", kind) == 0
    found = load_encoder(out)
    assert found.kind == kind
    start = load_encoder(work / "plain", kind, num_labels=3 if data == "class" else None, seed=42).state_dict()
    moved = {name for name, value in found.state_dict().items() if not torch.equal(value, start[name])}
    assert any("attention" in name for name in moved)
    assert kind == "bi-encoder" or any("classifier" in name for name in moved)
    assert found.num_labels == 3 if data == "class" else True


def read(work, name):
    return [json.loads(line) for line in (work / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["bi-encoder", "cross-encoder"])
def test_models_in_half_precision_learn_from_losses_in_float32(work, kind, dtype):
    formats = {"listwise": "listwise", "score": "pairs+score", "margins": "n-tuples+margins", "scores": "n-tuples+scores"}
    labels = {"listwise": "grades", "score": "score", "margins": "margins", "scores": "scores"}
    encoder = load_encoder(work / "plain", kind, seed=1).eval()
    half = load_encoder(work / "plain", kind, seed=1).to(dtype).eval()
    for expression, data in BOTH:
        bound = [{"label" if k == labels[data] else k: v for k, v in row.items()} for row in read(work, data)]
        found = []
        for model in (encoder, half):
            model.zero_grad()
            step = TrainingStep(model, create_loss(expression))
            output = step(Collator(model.processor, step.loss, formats[data], kind=kind)(bound))
            output["loss"].backward()
            found.append((output["loss"].detach(), sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)))
        (wanted, reference), (value, norm) = found
        assert value.dtype == torch.float32, expression
        assert value.item() == pytest.approx(wanted.item(), rel=0.05), expression
        assert reference > 0
        assert norm == pytest.approx(reference, rel=0.2), expression


def test_a_trained_reranker_scores_the_same_in_sentence_transformers(work, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    assert train(work, tmp_path / "out", "lambda-loss", "listwise", "plain", "--kind", "cross-encoder") == 0
    pairs = list(zip(texts(20, 3), texts(20, 4, 40), strict=True))
    ours, theirs = load_encoder(tmp_path / "out"), st.CrossEncoder(str(tmp_path / "out"), device="cpu")
    scores = ours.predict(pairs)
    assert np.ptp(scores) > 1e-3
    np.testing.assert_allclose(theirs.predict(pairs), scores, atol=1e-5)
    # What the peer saves is trained further as what it is.
    theirs.save_pretrained(str(tmp_path / "peer"))
    np.testing.assert_allclose(load_encoder(tmp_path / "peer").predict(pairs), scores, atol=1e-5)
    assert kind_of(tmp_path / "peer") == "cross-encoder"
    options = ["--max-steps", "1", "--batch-size", "2", "--save-steps", "0", "--out", str(tmp_path / "more")]
    data = str(work / "listwise.jsonl")
    assert run(["train", "--model", str(tmp_path / "peer"), "--data", data, "--loss", "rank-net", *options]) == 0
    assert kind_of(tmp_path / "more") == "cross-encoder"


def test_a_resumed_reranker_equals_an_uninterrupted_one(work, tmp_path):
    options = ["--kind", "cross-encoder", "--scheduler", "constant", "--save-steps", "3"]
    assert train(work, tmp_path / "whole", "lambda-loss", "listwise", "plain", *options, "--max-steps", "6") == 0
    assert train(work, tmp_path / "part", "lambda-loss", "listwise", "plain", *options, "--max-steps", "3") == 0
    half = load_encoder(tmp_path / "part").state_dict()
    assert train(work, tmp_path / "part", "lambda-loss", "listwise", "plain", *options, "--max-steps", "6", "--resume") == 0
    whole, part = (load_encoder(tmp_path / name).state_dict() for name in ("whole", "part"))
    assert any(not torch.equal(half[name], whole[name]) for name in whole)
    assert all(torch.equal(part[name], whole[name]) for name in whole)


def one_step(work, rows, *, recompute, chunk_tokens, seen=None):
    torch.manual_seed(5)
    encoder = load_encoder(work / "plain", "cross-encoder", seed=1)
    step = TrainingStep(encoder, create_loss("lambda_loss"), recompute=recompute).train()
    bound = [{"query": r["query"], "docs": r["docs"], "label": r["grades"]} for r in rows]
    batch = Collator(encoder.processor, step.loss, "listwise", chunk_tokens, kind="cross-encoder")(bound)
    if seen is not None:
        for layer in encoder.model.bert.encoder.layer:
            layer.register_forward_hook(lambda module, args, out: seen(out[0] if isinstance(out, tuple) else out))
    torch.manual_seed(6)
    output = step(batch)
    output["loss"].backward()
    return output["loss"].detach(), {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}, batch


def test_a_long_list_trains_in_the_memory_of_one_chunk(work):
    rows = lists(2, sizes=(200, 201))
    alive, peaks, total = [], [0, 0], [0, 0]
    results = []
    for i, recompute in enumerate((False, True)):
        alive.clear()

        def seen(out, i=i):
            alive.append((StorageWeakRef(out.untyped_storage()), out.numel()))
            alive[:] = [(ref, size) for ref, size in alive if not ref.expired()]
            peaks[i] = max(peaks[i], sum(size for _, size in alive))
            total[i] += out.numel()

        results.append(one_step(work, rows, recompute=recompute, chunk_tokens=300, seen=seen))
    (plain_loss, plain, batch), (loss, again, _) = results
    largest = max(chunk["input_ids"].numel() for chunk in batch["chunks"])
    width = load_encoder(work / "plain").dimension
    layers = load_encoder(work / "plain").n_layers
    assert len(batch["chunks"]) > 10
    assert sum(len(chunk["input_ids"]) for chunk in batch["chunks"]) == 400
    assert peaks[0] > 0.9 * total[0]  # without it the activations of all chunks are there at once
    assert peaks[1] <= 2 * largest * width * layers < 0.2 * peaks[0]
    assert loss == plain_loss
    assert sum(float(g.abs().sum()) for g in plain.values()) > 0
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_chunks_change_nothing(work):
    rows = lists(3, sizes=(3, 9))
    torch.manual_seed(0)
    encoder = load_encoder(work / "plain", "cross-encoder", seed=1).eval()
    step = TrainingStep(encoder, create_loss("list_net"))
    bound = [{"query": r["query"], "docs": r["docs"], "label": r["grades"]} for r in rows]
    prompts = {"query": "red green "}
    found = []
    for budget in (1, 60, 10**6):
        batch = Collator(encoder.processor, step.loss, "listwise", budget, prompts, "cross-encoder")(bound)
        found.append(step.scores(batch))
    for scores in found:
        torch.testing.assert_close(scores.values, found[0].values, rtol=1e-5, atol=1e-6)
        assert scores.mask.sum(1).tolist() == [len(r["docs"]) for r in rows]
    for i, row in enumerate(rows):  # and they are what `predict` gives, prompt included
        wanted = encoder.predict([(row["query"], d) for d in row["docs"]], prompt=prompts["query"], activation="Identity")
        np.testing.assert_allclose(found[0].values[i, : len(wanted)].detach().numpy(), wanted, atol=1e-5)
        assert not found[0].values[i, len(wanted) :].any()


def test_each_text_of_a_batch_is_tokenised_once(work):
    processor = load_encoder(work / "plain", "cross-encoder", max_length=16).processor
    docs = texts(9, 5, 30)
    queries, documents = zip(*[(q, d) for q in texts(7, 6) for d in docs], strict=True)
    wanted = processor._call(list(queries), list(documents))
    found = processor.tokenize_pairs(queries, documents)
    assert processor._joins
    assert max(len(ids) for ids, _ in wanted) == 16
    for (ids, types), item in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(item.ids, ids)
        np.testing.assert_array_equal(item.types, types)
    calls = []
    backend = processor.tokenizer.backend_tokenizer

    class Counting:
        def encode_batch(self, batch, **options):
            calls.append(list(batch))
            return backend.encode_batch(batch, **options)

        def __getattr__(self, name):
            return getattr(backend, name)

    class Tokenizer:
        backend_tokenizer = Counting()

        def __getattr__(self, name):
            return getattr(type(self).inner, name)

    Tokenizer.inner = processor.tokenizer
    processor.tokenizer = Tokenizer()
    rows = lists(6, 9, (4, 9))
    rows.append({**rows[0], "docs": rows[1]["docs"], "grades": rows[1]["grades"]})  # the same query, another row's documents
    bound = [{"query": r["query"], "docs": r["docs"], "label": r["grades"]} for r in rows]
    Collator(processor, create_loss("list_net"), "listwise", kind="cross-encoder")(bound)
    different = {r["query"] for r in rows} | {d for r in rows for d in r["docs"]}
    assert len(calls) == 1  # one call a step
    assert sorted(calls[0]) == sorted(different)
    assert len(different) < sum(1 + len(r["docs"]) for r in rows) < 2 * sum(len(r["docs"]) for r in rows)


# -- evaluation ---------------------------------------------------------------------------------------------------------
def test_reranking_metrics_are_those_of_ir_measures():
    import ir_measures
    from ir_measures import AP, RR, nDCG

    rng = np.random.default_rng(0)
    made = [(rng.permutation(n).astype(float), rng.integers(0, 4, n).astype(float)) for n in rng.integers(3, 30, 40)]
    made = [(s, g) for s, g in made if g.max() > 0 and np.ptp(g) > 0]
    gold = {str(q): {str(d): int(grade) for d, grade in enumerate(g)} for q, (_, g) in enumerate(made)}
    scored = {str(q): {str(d): float(score) for d, score in enumerate(s)} for q, (s, _) in enumerate(made)}
    wanted = ir_measures.calc_aggregate([nDCG @ 10, RR @ 10, AP], gold, scored)
    found = reranking_metrics(made)
    assert found["ndcg@10"] == pytest.approx(wanted[nDCG @ 10], abs=1e-9)
    assert found["mrr@10"] == pytest.approx(wanted[RR @ 10], abs=1e-9)
    assert found["map"] == pytest.approx(wanted[AP], abs=1e-9)


def test_bm25_is_the_formula():
    pytest.importorskip("bm25s")
    docs = [["the cat sat", "the dog sat on the cat", "a bird"], ["the dog barks and barks", "the cat sat"]]
    queries = ["cat dog cat", "barks unknown"]
    corpus = list(dict.fromkeys(d for texts_ in docs for d in texts_))
    split = [[w for w in d.split() if len(w) > 1] for d in corpus]
    mean = np.mean([len(words) for words in split])
    for query, own, scores in zip(queries, docs, bm25_scores(queries, docs), strict=True):
        for doc, score in zip(own, scores, strict=True):
            words, wanted = split[corpus.index(doc)], 0.0
            for term in query.split():
                df = sum(term in other for other in split)
                if df:
                    idf = np.log(1 + (len(corpus) - df + 0.5) / (df + 0.5))
                    tf = words.count(term)
                    wanted += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
            assert score == pytest.approx(wanted, abs=1e-5)
    assert any(score > 0 for score in bm25_scores(queries, docs)[0])


def test_baselines_stand_beside_the_model(work, tmp_path, capsys, monkeypatch):
    pytest.importorskip("bm25s")
    monkeypatch.setenv("COLUMNS", "80")
    rows = lists(8, 4, (4, 7))
    file = write(tmp_path / "test.jsonl", [*rows, {"query": "flat", "docs": ["a", "b"], "grades": [1, 1]}])
    capsys.readouterr()
    assert run(["evaluate", str(work / "cross"), file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["baselines"]) == {"given order", "random order", "BM25"}
    bound = [{"query": r["query"], "docs": r["docs"], "label": r["grades"]} for r in rows]
    wanted = evaluate(load_encoder(work / "cross"), bound, "listwise")
    assert {k: v for k, v in found["metrics"].items() if k != "lists_excluded"} == pytest.approx(wanted)
    given = [(-np.arange(len(r["docs"]), dtype=float), np.array(r["grades"], dtype=float)) for r in rows]
    assert list_baselines(bound)["given order"] == reranking_metrics(given)
    # For a random order the expectation of nDCG is known: all documents tied.
    tied = [(np.zeros(len(r["docs"])), np.array(r["grades"], dtype=float)) for r in rows]
    assert list_baselines(bound)["random order"]["ndcg@10"] == pytest.approx(reranking_metrics(tied)["ndcg@10"], abs=0.03)
    assert run(["evaluate", str(work / "cross"), file, "--compare", str(work / "bi")]) == 0
    shown = capsys.readouterr().out.splitlines()
    table = [line for line in shown if line.startswith(("order", "given", "random", "BM25", "..."))]
    assert len(table) == 6
    assert any("1 lists are left out" in line for line in shown)
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    assert set(list_baselines(bound)) == {"given order", "random order"}
    assert run(["evaluate", str(work / "cross"), file]) == 0
    assert "pip install 'embedloss[bm25]'" in capsys.readouterr().out


# -- rank ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["cross", "bi"])
def test_rank_puts_documents_in_the_order_of_the_model(work, tmp_path, capsys, model):
    docs = texts(12, 8)
    file = write(tmp_path / "docs.jsonl", [{"body": d} for d in docs])
    words = ["rank", str(work / model), "--query", SENTENCES[0], "--docs", file]
    capsys.readouterr()
    assert run([*words, "--column", "body", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    encoder = load_encoder(work / model)
    if model == "cross":
        scores = encoder.predict([(SENTENCES[0], d) for d in docs])
    else:
        vectors = encoder.encode([SENTENCES[0], *docs], normalize=True)
        scores = vectors[1:] @ vectors[0]
    assert [entry["row"] for entry in found] == (np.argsort(-scores, kind="stable") + 1).tolist()
    assert [docs[entry["row"] - 1] for entry in found] == [entry["text"] for entry in found]
    np.testing.assert_allclose([entry["score"] for entry in found], np.sort(scores)[::-1], atol=1e-5)
    assert run([*words, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["rank", "three", "--query", "x", "--docs", "docs.jsonl"], "E302"),
        (["rank", "cross", "--query", " ", "--docs", "docs.jsonl"], "E104"),
        (["rank", "nowhere", "--query", "x", "--docs", "docs.jsonl"], "E301"),
        (["rank", "cross", "--query", "x", "--docs", "docs.jsonl", "--column", "txet"], "E102"),
        (["search", "cross", "x", "--docs", "docs.jsonl"], "E302"),
        (["encode", "cross", "docs.jsonl", "--out", "x.npy"], "E302"),
    ],
)
def test_what_cannot_be_ranked_is_refused(work, monkeypatch, capsys, words, code):
    write(work / "docs.jsonl", [{"text": d} for d in texts(3)])
    monkeypatch.chdir(work)
    assert run(["./" + w if w in ("three", "cross", "nowhere") else w for w in words]) == 1
    assert capsys.readouterr().err.startswith(f"{code}: ")


# -- bad input ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("row", "loss", "words"),
    [
        ({"docs": ["a", "b"], "grades": [1]}, "list-net", "E105: column 'grades', row 3: 1 numbers for 2 texts"),
        ({"docs": [], "grades": []}, "list-net", "E104: column 'docs', row 3: an empty list"),
        ({"docs": ["a", " "], "grades": [1, 0]}, "list-net", "E104: column 'docs', row 3: an empty text"),
        ({"docs": ["a", "b"], "grades": [1, float("nan")]}, "list-net", "E105: column 'grades', row 3: a value that is null"),
        ({"docs": ["a", "b"], "grades": [1, None]}, "rank-net", "E105: column 'grades', row 3: a value that is null"),
        ({"docs": ["a", "b"], "grades": [1, float("-inf")]}, "lambda-loss", "row 3: a value that is null, NaN or infinite"),
        ({"docs": ["a", "b"], "grades": [1, float("inf")]}, "list-net", "row 3: a value that is null, NaN or +infinity"),
        ({"docs": ["a"], "grades": [float("-inf")]}, "list-net", "E105: column 'grades', row 3: only values of -inf"),
        ({"docs": ["a", "b"], "grades": [1, float("-inf")]}, "list-net + rank-net", "null, NaN or infinite"),
        ({"docs": ["a", "b"], "grades": [61, 0]}, "lambda-loss", "row 3: labels from 0 to 61; 'lambda-loss' takes at most 60."),
        (
            {"docs": ["a", "b"], "grades": [61, 0]},
            "rank-net + lambda-loss",
            "row 3: labels from 0 to 61; 'sum' takes at most 60.",
        ),
        ({"docs": ["a", "b"], "grades": [0, 1]}, "list-mle", "E105: column 'grades', row 3: a better grade comes later"),
        ({"docs": ["a", "b"], "grades": [0, 1]}, "0.5 * plist-mle + list-net", "row 3: a better grade comes later"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_with_their_row(work, tmp_path, capsys, monkeypatch, row, loss, words):
    monkeypatch.setenv("COLUMNS", "400")
    good = [{"query": "q", "docs": ["a", "b"], "grades": [1, 0]}, {"query": "r", "docs": ["c", "d", "e"], "grades": [2, 2, 0]}]
    file = write(tmp_path / "bad.jsonl", [*good, {"query": "s", **row}])
    options = ["--data", file, "--loss", loss, "--out", str(tmp_path / "out"), "--max-steps", "1"]
    assert run(["train", "--model", str(work / "cross"), *options]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("loss", "grade"),
    [
        ("list-net", float("-inf")), ("0.5 * list-net", float("-inf")), ("list-net", 61), ("rank-net", 61),
        ("lambda_loss(weighting_scheme=None)", 61), ("lambda-loss", 60), ("lambda-loss", -1),
    ],
)  # fmt: skip
def test_grades_that_a_loss_has_a_use_for_are_trained_on(work, tmp_path, loss, grade):
    rows = [{"query": q, "docs": ["red", "green", "blue"], "grades": [1.0, 0.0, grade]} for q in ("red", "green")]
    write(work / "grades.jsonl", rows)
    assert train(work, tmp_path / "out", loss, "grades", "cross", "--max-steps", "1") == 0
    before, after = (load_encoder(folder).state_dict() for folder in (work / "cross", tmp_path / "out"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in after.values())


def test_a_teacher_may_leave_candidates_out(work, tmp_path, capsys):
    rows = [{"query": q, "positive": "red", "negative": ["green"], "scores": [1.0, -np.inf]} for q in ("red", "green")]
    file = write(tmp_path / "scores.jsonl", rows)
    assert run(["check", file, "--loss", "distill-kl-div"]) == 0
    write(tmp_path / "scores.jsonl", [*rows, {**rows[0], "scores": [-np.inf, -np.inf]}])
    assert run(["check", file, "--loss", "distill-kl-div"]) == 1
    assert "row 3: only values of -inf" in capsys.readouterr().err


def test_the_order_may_be_sorted_instead(work, tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", [{"query": q, "docs": ["a", "b"], "grades": [0, 1]} for q in "xyz"])
    capsys.readouterr()
    assert run(["check", file, "--loss", "list_mle()"]) == 1
    assert "respect_input_order=False" in capsys.readouterr().err
    assert run(["check", file, "--loss", "list_mle(respect_input_order=False)"]) == 0


def test_equal_grades_everywhere_are_refused_with_their_number(work, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    flat = [{"query": q, "docs": ["a", "b"], "grades": [1, 1]} for q in "xyz"]
    file = write(tmp_path / "flat.jsonl", flat)
    assert run(["check", file, "--loss", "lambda-loss"]) == 1
    assert "every one of the 3 lists has equal grades only" in capsys.readouterr().err
    file = write(tmp_path / "some.jsonl", [*flat, {"query": "w", "docs": ["a", "b"], "grades": [1, 0]}])
    assert run(["check", file, "--loss", "lambda-loss"]) == 0
    assert "3 of 4 lists have equal grades only" in capsys.readouterr().out


def test_a_model_with_several_outputs_is_no_scorer(work):
    with pytest.raises(EmbedlossError, match=r"E302: 'rank-net' needs one score a pair; this cross-encoder has 3 outputs"):
        TrainingStep(load_encoder(work / "three"), create_loss("rank_net"))
