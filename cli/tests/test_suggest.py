"""Suggestions: the first is what the field would take, each is a command that runs, and none comes from a list of names."""

import json
import re
import shlex
from pathlib import Path

import pytest

from embedloss.errors import EmbedlossError
from embedloss.spec import LossSpec
from embedloss.suggest import MODELS, suggest

DATA = Path(__file__).parents[3] / "shared" / "data"


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


SETS = {
    "pairs": [{"query": f"question {i}", "positive": f"answer {i}"} for i in range(40)],
    "scores": [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 10 / 9} for i in range(40)],
    "scores to 5": [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 6} for i in range(40)],
    "classes": [{"text": f"text {i}", "label": f"class {i % 5}"} for i in range(40)],
    "binary": [{"question1": f"a {i}", "question2": f"b {i}", "label": i % 2} for i in range(40)],
    "triplets": [{"anchor": f"a {i}", "positive": f"b {i}", "negative": f"c {i}"} for i in range(40)],
    "tuples": [{"anchor": f"a {i}", "positive": f"b {i}", "negatives": [f"c {i}", f"d {i}"]} for i in range(40)],
    "lists": [{"query": f"q {i}", "docs": ["a", "b", "c"], "grades": [2, 1, 0]} for i in range(40)],
    "texts": [{"text": f"some text of number {i}"} for i in range(40)],
    "inference": [
        {"premise": f"p {i}", "hypothesis": f"{label} {i}", "label": label}
        for i in range(40)
        for label in ("entailment", "neutral", "contradiction")
    ],
    "vectors": [{"text": f"text {i}", "embedding": [i, 1.0, 2.0]} for i in range(40)],
    "teacher": [{"query": "q", "positive": "p", "negative": ["n", "m"], "scores": [3.0, 2.0, 1.5]} for _ in range(40)],
}
FIRST = {
    "pairs": "multiple-negatives-ranking",
    "scores": "cosent",
    "scores to 5": "cosent",
    "classes": "batch-hard-triplet",
    "binary": "online-contrastive",
    "triplets": "multiple-negatives-ranking",
    "tuples": "multiple-negatives-ranking",
    "lists": "lambda-loss",
    "texts": "denoising-auto-encoder",
    "inference": "softmax",
    "vectors": "mse",
    "teacher": "distill-kl-div",
}


@pytest.mark.parametrize("name", SETS)
def test_the_first_suggestion_is_the_usual_one(tmp_path, name):
    answer = suggest(save(tmp_path / "data.jsonl", SETS[name]))
    assert answer.as_is[0].loss == FIRST[name]
    assert [s.score for s in answer.as_is] == sorted((s.score for s in answer.as_is), reverse=True)
    assert all(s.reasons and s.command.startswith("embedloss train --model ") for s in answer.as_is)


@pytest.mark.parametrize(
    ("name", "kind", "first"),
    [
        ("pairs", "cross-encoder", "cross-multiple-negatives-ranking"),
        ("binary", "cross-encoder", "binary-cross-entropy"),
        ("inference", "cross-encoder", "cross-entropy"),
        ("lists", "cross-encoder", "lambda-loss"),
    ],
)
def test_the_kind_of_model_decides(tmp_path, name, kind, first):
    answer = suggest(save(tmp_path / "data.jsonl", SETS[name]), kind=kind)
    assert answer.as_is[0].loss == first
    assert MODELS["cross-encoder"] in answer.as_is[0].command


@pytest.mark.parametrize("name", [*SETS, "texts twice", "gaps", "repeated query"])
def test_training_takes_what_is_suggested(tmp_path, name):
    """Both ask the same examination: no suggestion is refused, and what is refused says why."""
    from embedloss.training.config import RunConfig
    from embedloss.training.run import prepare

    more = {
        "texts twice": [{"anchor": f"text {i}", "positive": f"text {i}"} for i in range(40)],
        "gaps": [{"anchor": f"a {i}", "positive": f"b {i}", "negatives": [f"c {i}"] * (i % 2)} for i in range(40)],
        "repeated query": [{"query": "the same", "positive": f"answer {i}"} for i in range(40)],
    }
    file = save(tmp_path / "data.jsonl", {**SETS, **more}[name])
    answer = suggest(file)
    assert answer.as_is or name == "repeated query"

    def settings(command):
        words = shlex.split(command)
        return {
            "model": "static(dimension=8)",
            "data": file,
            "loss": words[words.index("--loss") + 1],
            "out": str(tmp_path / "run"),
            "scale_labels": "--scale-labels" in words,
            "sampler": words[words.index("--sampler") + 1],
        }

    for each in answer.as_is:
        if "cross-encoder" not in each.command:
            prepare(RunConfig(**settings(each.command)), say=lambda text: None)
    names = {each.loss for each in answer.as_is}
    tension = {"contrastive-tension", "contrastive-tension-in-batch-negatives"}
    if name in ("pairs", "tuples"):
        assert not names & tension
    if name == "pairs":
        assert "--drop positive" in answer.refused["contrastive-tension-in-batch-negatives"]
    if name in ("texts", "texts twice"):
        assert tension <= names
    if name == "gaps":
        assert "multiple-negatives-ranking" in names
        assert "at least one text" in answer.refused["triplet"]
    if name == "repeated query":
        assert "every row has the same 'anchor'" in answer.refused["multiple-negatives-ranking"]


def test_inference_is_best_as_triplets(tmp_path):
    first = suggest(save(tmp_path / "nli.jsonl", SETS["inference"])).converted[0]
    assert (first.format, first.loss) == ("triplets", "multiple-negatives-ranking")
    numbered = [{**row, "label": ["entailment", "neutral", "contradiction"].index(row["label"])} for row in SETS["inference"]]
    assert not suggest(save(tmp_path / "ids.jsonl", numbered)).converted  # nobody can know which id is which


def test_scores_outside_the_range_need_scaling(tmp_path):
    found = {s.loss: s for s in suggest(save(tmp_path / "data.jsonl", SETS["scores to 5"])).as_is}
    assert "--scale-labels" in found["cosine-similarity"].command
    assert "--scale-labels" not in found["cosent"].command
    assert found["cosine-similarity"].score < found["cosent"].score


def test_what_would_be_refused_is_said(tmp_path):
    rows = [*SETS["classes"], {"text": "alone", "label": "single"}]
    answer = suggest(save(tmp_path / "data.jsonl", rows))
    assert not answer.as_is
    assert "the only row of its class" in answer.refused["batch-hard-triplet"]
    assert answer.converted[0].format == "pairs"


def test_repeated_texts_are_a_reason(tmp_path):
    rows = [{"query": f"question {i // 2}", "positive": f"answer {i}"} for i in range(40)]
    first = suggest(save(tmp_path / "data.jsonl", rows)).as_is[0]
    assert first.sampler == "no-duplicates"
    assert any("20 rows repeat their 'anchor'" in reason for reason in first.reasons)


def test_columns_without_meaning_are_left_out_by_the_command(tmp_path):
    rows = [{**row, "topic": f"t {i}", "label_id": i % 5} for i, row in enumerate(SETS["classes"])]
    answer = suggest(save(tmp_path / "data.jsonl", rows))
    words = shlex.split(answer.as_is[0].command)
    assert [words[i + 1] for i, w in enumerate(words) if w == "--drop"] == ["topic", "label_id"]


def test_conversions_that_the_rows_do_not_allow_are_not_named(tmp_path):
    once = suggest(save(tmp_path / "a.jsonl", SETS["binary"]))
    assert {s.format for s in once.converted} == {"pairs"}  # no query has two documents
    rows = [{**row, "question1": f"a {i // 2}"} for i, row in enumerate(SETS["binary"])]
    several = suggest(save(tmp_path / "b.jsonl", rows))
    assert {"triplets", "n-tuples"} <= {s.format for s in several.converted}


def test_a_strangers_loss_is_ranked_by_its_spec(tmp_path, monkeypatch):
    import embedloss.suggest as module

    mine = LossSpec(name="mine", target="m:M", summary="mine", family="x", formats=("pairs",), recommended=99, advice="because")
    silent = LossSpec(name="silent", target="m:M", summary="says nothing", family="x", formats=("pairs",))
    known = module.list_losses()
    monkeypatch.setattr(module, "list_losses", lambda **_: [*known, mine, silent])
    found = suggest(save(tmp_path / "data.jsonl", SETS["pairs"])).as_is
    assert found[0].loss == "mine"
    assert found[0].reasons[0] == "because"
    assert next(s for s in found if s.loss == "silent").reasons[0] == "says nothing"
    source = Path(module.__file__).read_text()
    assert not [s.name for s in known if re.search(rf"['\"]{re.escape(s.name)}['\"]", source)]


def test_data_of_no_format_is_refused(tmp_path):
    with pytest.raises(EmbedlossError, match="E102"):
        suggest(save(tmp_path / "data.jsonl", [{"x": 1}, {"x": 2}]))
    judged = [{"query_id": "1", "doc_id": "2", "score": 1}] * 2
    with pytest.raises(EmbedlossError, match="These look like judgements: embedloss convert"):
        suggest(save(tmp_path / "data.jsonl", judged))


# -- on the command line ----------------------------------------------------------------------------------------------
def test_the_commands_run(run, write, tmp_path):
    from embedloss.testing.models import tiny_bert

    model = tiny_bert(tmp_path / "model")
    write("data.jsonl", SETS["scores"])
    found = run("suggest", "data.jsonl", "--model", model, "--json").json
    assert found["as_is"][0]["loss"] == "cosent"
    first, pairs = found["as_is"][0], next(s for s in found["converted"] if s["format"] == "pairs")
    for command in (first["command"], pairs["conversion"], pairs["command"]):
        more = ["--max-steps", "2"] if command.startswith("embedloss train") else []
        outcome = run(*shlex.split(command)[1:], *more)
        assert outcome.status == 0, outcome.err
    assert (tmp_path / "runs" / "cosent" / "run.yaml").is_file()


def test_suggest_in_words(run, write):
    write("data.jsonl", SETS["pairs"])
    outcome = run("suggest", "data.jsonl")
    assert outcome.status == 0
    assert "As it is\n\n1. multiple-negatives-ranking\n   - the first choice for search" in outcome.out
    assert "After a conversion\n\n1. cosent on pairs+score" in outcome.out


def test_convert_and_its_report(run, write, tmp_path):
    write("data.jsonl", [*SETS["scores"], {"sentence1": "", "sentence2": "x", "score": 1}])
    outcome = run("convert", "data.jsonl", "--to", "pairs", "--threshold", "0.8", "--out", "o.jsonl")
    assert outcome.status == 0
    assert "rows in  41\nrows out 8\n" in outcome.out
    assert "dropped  32: the grade is below 0.8 (rows 1, 2, 3, 4, 5, ...)" in outcome.out
    assert "dropped  1: a text is missing or empty (row 41)" in outcome.out
    again = run("convert", "data.jsonl", "--to", "pairs", "--threshold", "0.8", "--out", "o.jsonl")
    assert (again.status, again.err.split()[0]) == (1, "E402:")
    document = run("convert", "data.jsonl", "--to", "pairs", "--threshold", "0.8", "--out", "o.jsonl", "--overwrite", "--json")
    assert document.json["rows_out"] == 8
    assert document.json["dropped"][0]["rows"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ("convert data.jsonl --to pairs --out o.jsonl", 1, "E107: pairs+score to pairs needs --threshold"),
        ("convert data.jsonl --to triplet --out o.jsonl", 1, "E101: unknown data format 'triplet'"),
        ("convert data.jsonl --to pairs --out o.csv", 1, "E402: 'o.csv' must end in .jsonl or .parquet"),
        ("convert data.jsonl --out o.jsonl", 2, "--to"),
        ("convert data.jsonl --to pairs --scale-labels 1 --out o.jsonl", 2, "not LOW,HIGH"),
        ("convert gone.jsonl --to pairs --out o.jsonl", 1, "E103"),
        ("convert --to pairs --out o.jsonl", 1, "E107: give one source"),
        ("convert data.jsonl --to pairs+score --scale-labels 5,1 --out o.jsonl", 1, "--scale-labels must be two numbers"),
        ("convert data.jsonl --to pairs+score --teacher gone --out o.jsonl", 1, "E107: pairs+score to pairs+score does not"),
        ("suggest gone.jsonl", 1, "E103"),
        ("suggest data.jsonl --kind decoder", 1, "E201"),
    ],
)
def test_mistakes_are_refused(run, write, tmp_path, arguments, status, text):
    write("data.jsonl", SETS["scores"])
    outcome = run(*arguments.split())
    assert outcome.status == status
    assert text in " ".join(outcome.err.split())
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_formats_lists_the_conversions(run):
    from embedloss.convert import CONVERSIONS

    listed = {(c["source"], c["target"]) for f in run("formats", "--json").json for c in f["conversions"]}
    assert listed == {(c.source, c.target) for c in CONVERSIONS}
    text = run("formats").out
    assert "to triplets\n  from single+class  two of a class, one of another; --per-class" in text


# -- real data --------------------------------------------------------------------------------------------------------
@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "losses", "converted"),
    [
        ("stsb/train", {"cosent", "angle"}, None),
        ("stsb/dev", {"cosent", "angle"}, None),
        ("medquad/train", {"multiple-negatives-ranking", "gist-embed"}, None),
        ("medquad/hard_negatives", {"multiple-negatives-ranking"}, None),
        ("banking77/train", {"batch-hard-triplet", "batch-semi-hard-triplet"}, "pairs"),
        ("trec_questions/train", {"batch-hard-triplet", "batch-semi-hard-triplet"}, "pairs"),
        ("nli/train", {"softmax"}, "triplets"),
        ("nli/triplets", {"multiple-negatives-ranking"}, None),
        ("cranfield/listwise_train", {"lambda-loss"}, "listwise"),
        ("liveqa_med/listwise", {"lambda-loss", "list-net"}, None),
        ("tldr_commands/train", {"multiple-negatives-ranking", "gist-embed"}, None),
        ("cosqa/labelled_pairs", {"online-contrastive", "contrastive"}, "pairs"),
        ("sentences/general", {"denoising-auto-encoder", "contrastive-tension"}, None),
        ("sentences/medical", {"denoising-auto-encoder", "contrastive-tension"}, None),
        ("vaswani/corpus", {"denoising-auto-encoder", "contrastive-tension"}, None),
        ("tatoeba/deu-eng", {"multiple-negatives-ranking"}, None),
    ],
)
def test_real_data(name, losses, converted):
    answer = suggest(str(DATA / f"{name}.jsonl"))
    listed = answer.as_is or answer.converted  # a data set with a faulty row is cleaned first
    assert losses <= {s.loss for s in listed[:3]}
    assert listed[0].loss in losses
    if converted:
        assert answer.converted[0].format == converted
