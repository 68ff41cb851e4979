"""Mistakes that a user can repair: exit 1, a code, what to type, no traceback, and nothing written.

The whole text on stderr is kept in golden_bad_input.txt. To accept a change:
EMBEDLOSS_UPDATE_GOLDEN=1 pytest cli/tests/test_cli_bad_input.py
"""

import json
import os
import re
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden_bad_input.txt")
PAIR = {"anchor": "a", "positive": "b"}
ROWS = [PAIR, {"anchor": "c", "positive": "d"}, {"anchor": "e", "positive": "f"}]
SCORED = {"sentence1": "a", "sentence2": "b", "score": 0.5}


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def rows(*lines):
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


# name -> (files, arguments). "train" stands for a whole command on data.jsonl with a model folder.
CASES = {
    "file missing": ({}, "train --data gone.jsonl"),
    "file missing, near": ({"data.jsonl": ROWS}, "train --data dta.jsonl"),
    "file empty": ({"data.jsonl": b""}, "train"),
    "file not UTF-8": ({"data.jsonl": b'{"anchor": "a", "positive": "b"}\n{"anchor": "\xe9", "positive": "d"}\n'}, "train"),
    "JSON broken": ({"data.jsonl": rows(PAIR, '{"anchor": "c", "positive": }')}, "train"),
    "JSON not an object": ({"data.jsonl": rows(PAIR, "[1, 2]")}, "train"),
    "unknown extension": ({"data.xlsx": b"PK"}, "train --data data.xlsx"),
    "CSV ragged": ({"data.csv": "anchor,positive\na,b\nc\n"}, "train --data data.csv"),
    "folder is no data set": ({"folder/a.jsonl": ROWS}, "train --data folder"),
    "Parquet damaged": ({"data.parquet": b"PAR1"}, "train --data data.parquet"),
    "column missing": ({"data.jsonl": rows({"q": "a", "a": "b"}, {"q": "c", "a": "d"})}, "train"),
    "column mistyped": ({"data.jsonl": ROWS}, "train --map anchor=anchr"),
    "role mistyped": ({"data.jsonl": ROWS}, "train --map ancor=anchor"),
    "dropped column mistyped": ({"data.jsonl": ROWS}, "train --drop positiv"),
    "text column unused": ({"data.jsonl": rows({**PAIR, "note": "x"}, {**PAIR, "note": "y"})}, "train"),
    "label for a loss that takes none": ({"data.jsonl": rows({**PAIR, "label": 1}, {**PAIR, "label": 0})}, "train"),
    "no label for a loss that needs one": ({"data.jsonl": ROWS}, "train --loss cosent"),
    "other format": ({"data.jsonl": rows(SCORED, SCORED)}, "train --loss triplet"),
    "null": ({"data.jsonl": rows(PAIR, {"anchor": None, "positive": "d"}, {"anchor": "e"})}, "train"),
    "empty text": ({"data.jsonl": rows(PAIR, {"anchor": " ", "positive": ""}, PAIR)}, "train"),
    "number where a text is needed": (
        {"data.jsonl": rows({"anchor": 1, "positive": "b"}, {"anchor": 2, "positive": "d"})},
        "train",
    ),
    "object where a text is needed": ({"data.jsonl": rows(*[{"anchor": {"x": "a"}, "positive": "b"}] * 2)}, "train"),
    "types mixed": ({"data.jsonl": rows(PAIR, {"anchor": 7, "positive": "d"})}, "train"),
    "empty list": ({"data.jsonl": rows({**PAIR, "negative": ["n"]}, {**PAIR, "negative": []})}, "train --loss triplet"),
    "one row": ({"data.jsonl": [PAIR]}, "train"),
    "label out of range": ({"data.jsonl": rows(SCORED, {**SCORED, "score": 5})}, "train --loss cosine-similarity"),
    "label not 0 or 1": ({"data.jsonl": rows({**SCORED, "score": -1}, SCORED)}, "train --loss contrastive"),
    "label not finite": (
        {"data.jsonl": rows('{"sentence1": "a", "sentence2": "b", "score": NaN}', SCORED)},
        "train --loss cosent",
    ),
    "label is text": ({"data.jsonl": rows(*[{**SCORED, "score": "high"}] * 2)}, "train --loss cosent"),
    "one class": ({"data.jsonl": rows(*[{"text": "a", "label": 1}] * 3)}, "train --loss batch-all-triplet"),
    "lists of different lengths": (
        {"data.jsonl": rows(*[{"query": "q", "docs": ["a", "b"], "grades": [1]}] * 2)},
        "train --loss list-net",
    ),
    "vectors of different lengths": (
        {"data.jsonl": rows({"text": "a", "embedding": [1.0, 2.0]}, {"text": "b", "embedding": [1.0]})},
        "train --loss mse",
    ),
    "several faults": (
        {
            "data.jsonl": rows(
                {"sentence1": None, "sentence2": "", "score": 9}, {"sentence1": "a", "sentence2": "b", "score": None}
            )
        },
        "train --loss cosine-similarity",
    ),
    "loss unknown": ({"data.jsonl": ROWS}, "train --loss mnlr"),
    "loss parameter unknown": ({"data.jsonl": ROWS}, "train --loss mnrl(scal=20)"),
    "loss parameter wrong": ({"data.jsonl": ROWS}, "train --loss mnrl(partition_mode='x')"),
    "loss not an expression": ({"data.jsonl": ROWS}, "train --loss mnrl(scale=20"),
    "loss unknown in a sum": ({"data.jsonl": ROWS}, "train --loss mnrl()+0.05*gorr()"),
    "loss unknown inside": ({"data.jsonl": ROWS}, "train --loss matryoshka(mnlr(),dims=[8])"),
    "loss parameter unknown in a sum": ({"data.jsonl": ROWS}, "train --loss mnrl()+matryoshka(mnrl(),dimms=[8])"),
    "loss parameter of wrong type": ({"data.jsonl": ROWS}, "train --loss gor()+mnrl(scale='x')"),
    "loss dims repeated": ({"data.jsonl": ROWS}, "train --loss matryoshka(mnrl(),dims=[8,8])"),
    "loss argument is no loss": ({"data.jsonl": ROWS}, "train --loss matryoshka('mnrl',dims=[8])"),
    "loss of scores inside": ({"data.jsonl": ROWS}, "train --loss adaptive_layer(ce_mnrl())"),
    "loss without its masks' guide": ({"data.jsonl": ROWS}, "train --loss mnrl(margin=0.1)"),
    "loss terms share no format": ({"data.jsonl": ROWS}, "train --loss triplet+cosent"),
    "model folder missing": ({"data.jsonl": ROWS}, "train --model ./gone"),
    "model folder empty": ({"data.jsonl": ROWS, "empty/x": "x"}, "train --model empty"),
    "model is a file": ({"data.jsonl": ROWS}, "train --model data.jsonl"),
    "output not empty": ({"data.jsonl": ROWS, "out/x": "x"}, "train"),
    "output is a file": ({"data.jsonl": ROWS, "out": "x"}, "train"),
    "nothing to resume": ({"data.jsonl": ROWS}, "train --resume"),
    "YAML key unknown": ({"run.yaml": "modle: x\n"}, "train run.yaml"),
    "YAML value of wrong type": ({"run.yaml": "batch_size: many\n"}, "train run.yaml"),
    "YAML broken": ({"run.yaml": "a: [1\n"}, "train run.yaml"),
    "YAML no mapping": ({"run.yaml": "- a\n"}, "train run.yaml"),
    "YAML missing": ({}, "train gone.yaml"),
    "data where the YAML stands": ({"data.jsonl": ROWS}, "train data.jsonl"),
    "set without value": ({"data.jsonl": ROWS}, "train --set epochs"),
    "set key unknown": ({"data.jsonl": ROWS}, "train --set epoch=3"),
    "setting out of range": ({"data.jsonl": ROWS}, "train --batch-size 0 --warmup -1"),
    "best checkpoint without evaluation": ({"data.jsonl": ROWS}, "train --load-best --early-stopping 3"),
    "metric without purpose": ({"data.jsonl": ROWS}, "train --metric-for-best ndcg@10"),
    "schedule mistyped": ({"data.jsonl": ROWS}, "train --scheduler cosin"),
    "schedule with a wrong argument": ({"data.jsonl": ROWS}, "train --scheduler polynomial(pwr=2)"),
    "reporter mistyped": ({"data.jsonl": ROWS}, "train --report-to tensorbord"),
    "adapter setting mistyped": ({"data.jsonl": ROWS}, "train --lora rank=8"),
    "adapter setting out of range": ({"data.jsonl": ROWS}, "train --lora r=0"),
    "adapters for a static encoder": ({"data.jsonl": ROWS}, "train --model static(dimension=8) --lora r=8"),
    "hub id wrong": ({"data.jsonl": ROWS}, "train --push-to-hub me/my/model"),
    "report: folder missing": ({}, "report gone"),
    "report: no run": ({"folder/x": "x"}, "report folder"),
    "report: no HTML": ({"folder/x": "x"}, "report folder --out page.pdf"),
    "report: twice": ({"folder/x": "x"}, "report folder folder"),
    "tune: nothing to search": ({"data.jsonl": ROWS}, "tune --model model --data data.jsonl --loss mnrl --out out"),
    "tune: no evaluation data": (
        {"data.jsonl": ROWS},
        "tune --model model --data data.jsonl --loss mnrl(scale={scale}) --out out --range scale=1..2",
    ),
    "tune: bounds the wrong way": ({"data.jsonl": ROWS}, "tune --range scale=40..10"),
    "tune: no range": ({"data.jsonl": ROWS}, "tune --range scale=40"),
    "tune: name unknown": (
        {"data.jsonl": ROWS},
        "tune --model model --data data.jsonl --eval-data data.jsonl --loss mnrl --out out --range batchsize=1..2",
    ),
    "evaluation data missing": ({"data.jsonl": ROWS}, "train --eval-data gone.jsonl"),
    "sets: one without a name": ({"data.jsonl": ROWS}, "train --data a=data.jsonl --data data.jsonl"),
    "sets: name of a loss": ({"data.jsonl": ROWS}, "train --data dev=data.jsonl --loss dve=mnrl"),
    "sets: name of a prompt": ({"data.jsonl": ROWS}, "train --data dev=data.jsonl --prompt dve.anchor=x"),
    "sets: role of a prompt": ({"data.jsonl": ROWS}, "train --data dev=data.jsonl --prompt dev.ancor=x"),
    "sets: key": ({"data.jsonl": ROWS}, "train --data dev=data.jsonl --set data.dev.batchsize=3"),
    "sets: weights missing": ({"data.jsonl": ROWS}, "train --data a=data.jsonl --data b=data.jsonl --weight a=1"),
    "sets: weights not read": (
        {"data.jsonl": ROWS},
        "train --data a=data.jsonl --data b=data.jsonl --weight a=1 --weight b=2 --mix round-robin",
    ),
    "sets: temperature missing": ({"data.jsonl": ROWS}, "train --data a=data.jsonl --data b=data.jsonl --mix temperature"),
    "sets: only one": ({"data.jsonl": ROWS}, "train --mix round-robin"),
    "sets: columns of one": ({"data.jsonl": rows(*[{"q": "a", "d": "b"}] * 2)}, "train --data dev=data.jsonl"),
    "stream: no steps": ({"data.jsonl": ROWS}, "train --streaming"),
    "stream: JSON document": ({"data.json": b"[]"}, "train --streaming --max-steps 5 --data data.json"),
    "stream: bad first row": ({"data.jsonl": rows(PAIR, {**PAIR, "anchor": ""})}, "train --streaming --max-steps 5"),
    "stream: buffer": ({"data.jsonl": ROWS}, "train --streaming --max-steps 5 --shuffle-buffer 1"),
    "stream: mixed by size": (
        {"data.jsonl": ROWS},
        "train --streaming --max-steps 5 --data a=data.jsonl --data b=data.jsonl --mix proportional",
    ),
    "check: no format": ({"data.jsonl": rows({"a": "x", "b": "y"}, {"a": "x", "b": "y"})}, "check data.jsonl"),
    "check: unused": ({"data.jsonl": rows({**PAIR, "note": "x"}, {**PAIR, "note": "y"})}, "check data.jsonl"),
    "evaluate: model missing": ({"data.jsonl": ROWS}, "evaluate ./gone data.jsonl"),
    "evaluate: format unknown": ({"data.jsonl": ROWS}, "evaluate model data.jsonl --format pears"),
    "evaluate: role of a prompt unknown": ({"data.jsonl": ROWS}, "evaluate model data.jsonl --prompt query=x"),
    "evaluate: metric does not fit": ({"data.jsonl": ROWS}, "evaluate model data.jsonl --metrics spearman_cosine"),
    "evaluate: split of a file": ({"data.jsonl": ROWS}, "evaluate model data.jsonl --split test"),
    "evaluate: several splits": (
        {
            "set/corpus.jsonl": rows({"_id": "d", "text": "a"}),
            "set/queries.jsonl": rows({"_id": "q", "text": "b"}),
            "set/qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq\td\t1\n",
            "set/qrels/test.tsv": "query-id\tcorpus-id\tscore\nq\td\t1\n",
        },
        "evaluate model set",
    ),
    "compare: no budget": ({"data.jsonl": ROWS}, "compare data.jsonl --model static --out out"),
    "compare: budget too small": (
        {"data.jsonl": ROWS},
        "compare data.jsonl --model static --out out --max-steps 5 --halving",
    ),
    "compare: loss unknown": ({"data.jsonl": ROWS}, "compare data.jsonl --model static --out out --max-steps 5 --losses mnlr"),
    "compare: too few rows": ({"data.jsonl": ROWS}, "compare data.jsonl --model static --out out --max-steps 5 --losses mnrl"),
    "compare: folder in use": (
        {"data.jsonl": ROWS, "out/x": "x"},
        "compare data.jsonl --model static --out out --max-steps 5 --losses mnrl",
    ),
    "encode: several text columns": ({"data.jsonl": ROWS}, "encode model data.jsonl --out a.npy"),
    "encode: column unknown": ({"data.jsonl": ROWS}, "encode model data.jsonl --column anchr --out a.npy"),
    "encode: output exists": ({"data.jsonl": ROWS, "a.npy": "x"}, "encode model data.jsonl --column anchor --out a.npy"),
    "encode: output of unknown kind": ({"data.jsonl": ROWS}, "encode model data.jsonl --column anchor --out a.txt"),
    "search: empty text": ({"data.jsonl": rows({"text": "a"}, {"text": ""})}, "search model q --docs data.jsonl"),
    "init-static: no texts": ({"data.jsonl": rows({"a": 1}, {"a": 2})}, "init-static data.jsonl out"),
    "demo-data: not empty": ({"out/x": "x"}, "demo-data out"),
    "mine: settings": (
        {"data.jsonl": ROWS},
        "mine data.jsonl --model model --out a.jsonl --num-negatives 0 --relative-margin 5",
    ),
    "mine: output unknown": ({"data.jsonl": ROWS}, "mine data.jsonl --model model --out a.jsonl --to pairs"),
    "mine: judgements without texts": ({"data.jsonl": ROWS}, "mine --qrels data.jsonl --model model --out a.jsonl"),
    "mine: no pairs": ({"data.jsonl": rows({"text": "a"}, {"text": "b"})}, "mine data.jsonl --model model --out a.jsonl"),
    "plugin file missing": ({"data.jsonl": ROWS}, "list --plugin gone.py"),
}


def golden():
    if not GOLDEN.is_file():
        return {}
    parts = GOLDEN.read_text(encoding="utf-8").split("\n=== ")
    return dict(part.split("\n", 1) for part in parts if part.strip())


def comparable(text):
    """Without line breaks, and without lists that grow with every plugin, parameter or setting."""
    text = " ".join(text.split())
    return re.sub(r"(Losses that take it as it is|It takes|Keys|Did you mean mnrl): .*?(?= See `|$)", r"\1", text)


def command_of(arguments):
    words = arguments.split()
    if words[0] == "train" and not any(w.endswith(".yaml") for w in words):
        defaults = {"--model": "model", "--data": "data.jsonl", "--loss": "mnrl", "--out": "out"}
        for option, value in defaults.items():
            if option not in words:
                words += [option, value]
    return words


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_refused(run, write, tmp_path, name):
    files, arguments = CASES[name]
    for path, content in files.items():
        write(path, content)
    write("model/config.json", "{}")
    before = files_below(tmp_path)
    result = run(*command_of(arguments))
    assert result.status == 1, result
    assert "Traceback" not in result.err
    assert files_below(tmp_path) == before  # nothing is written
    code = result.err[:4]
    assert code[0] == "E"
    assert result.err[4] == ":"
    assert result.err.rstrip().endswith(f"See `embedloss explain {code}`.")
    assert max(map(len, result.err.splitlines())) <= 80 + 40  # only long single words and shown data may stick out
    if os.environ.get("EMBEDLOSS_UPDATE_GOLDEN"):
        known = {**golden(), name: result.err}
        text = "".join(f"\n=== {key}\n{known[key]}" for key in CASES if key in known)
        GOLDEN.write_text(text, encoding="utf-8")
    assert comparable(result.err) == comparable(golden()[name])


def test_a_folder_without_permission(run, write, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    write("data.jsonl", ROWS)
    write("model/config.json", "{}")
    (tmp_path / "closed").mkdir(mode=0o500)
    result = run(*command_of("train --out closed/out"))
    assert (result.status, result.err[:4]) == (1, "E402")


def test_a_full_disk(run, write, monkeypatch):
    import errno

    from embedloss_cli import demo

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device", "out/train.jsonl")

    monkeypatch.setattr(demo, "write_demo_data", full)
    result = run("demo-data", "out")
    assert result.status == 1
    assert result.err.startswith("E402: cannot write 'out/train.jsonl': No space left on device.")


def test_ctrl_c(run, monkeypatch):
    from embedloss_cli import demo

    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_demo_data", stop)
    result = run("demo-data", "out")
    assert result.status == 130
    assert "Traceback" not in result.err
