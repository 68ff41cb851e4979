import json

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
    rows = [{"anchor": f"{q} {i}", "positive": f"{d} {i}", "id": f"{i}-{q[0]}"} for i in range(6) for q, d in TOPICS.items()]
    return write("pairs.jsonl", rows)


@pytest.fixture
def model(run, pairs):
    result = run("init-static", pairs, "model", "--dim", "16", "--vocab-size", "200", "--seed", "3")
    assert (result.status, result.err) == (0, "")
    assert "dimension 16" in result.out
    return "model"


def test_check_without_a_loss(run, write):
    write("a.csv", "sentence1,sentence2,score,length\na,b,0.5,3\nc,d,1,4\n")
    result = run("check", "a.csv")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[:7] == [
        "a.csv: 2 rows",
        "format pairs+score",
        "  first  <- sentence1",
        "  second <- sentence2",
        "  label  <- score (score: a real number)",
        "  not used: length",
        "labels from 0.5 to 1",
    ]
    assert "cosent" in result.out
    found = run("check", "a.csv", "--json").json
    assert found["binding"]["format"] == "pairs+score"
    assert (found["rows"], found["faults"]) == (2, [])
    assert "cosent" in found["losses"]


def test_check_reads_whole_numbers_as_what_they_can_be(run, write):
    write("binary.jsonl", [{"first": "a", "second": "b", "label": i} for i in (0, 1)])
    write("grades.jsonl", [{"first": "a", "second": "b", "label": i} for i in (-1, 5)])
    assert "pairs+binary" in run("check", "binary.jsonl", "--json").json["formats"]
    assert run("check", "grades.jsonl", "--json").json["formats"] == ["pairs+score"]


def test_check_with_a_loss_and_names_of_classes(run, write):
    write("a.jsonl", [{"text": "a", "label": name} for name in ("no", "yes", "no", "yes")])
    result = run("check", "a.jsonl", "--loss", "batch-all-triplet")
    assert (result.status, result.err) == (0, "")
    assert "2 classes by name, numbered: no=0, yes=1" in result.out
    assert "No fault found." in result.out


def test_check_as_json_exits_with_1_on_faults(run, write):
    write("a.jsonl", [{"anchor": "", "positive": "b"}, {"anchor": "a", "positive": "b"}])
    result = run("check", "a.jsonl", "--loss", "mnrl", "--json")
    assert result.status == 1
    assert result.json["faults"] == [
        {"code": "E104", "message": "empty text. Repair or remove these rows.", "column": "anchor", "rows": [1], "count": 1}
    ]


def test_check_scaled_labels(run, write):
    write("a.jsonl", [{"first": "a", "second": "b", "score": i} for i in (0, 5)])
    assert run("check", "a.jsonl", "--loss", "cosine-similarity").status == 1
    assert run("check", "a.jsonl", "--loss", "cosine-similarity", "--scale-labels").status == 0


def test_encode(run, model, pairs, tmp_path):
    import pyarrow.parquet

    assert run("encode", model, pairs, "--column", "anchor", "--out", "deep/a.npy").status == 0
    vectors = np.load(tmp_path / "deep/a.npy")
    assert vectors.shape == (24, 16)
    assert (
        run("encode", model, pairs, "--column", "anchor", "--out", "a.parquet", "--normalize", "--truncate-dim", "8").status
        == 0
    )
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["text", "embedding"]
    short = np.array(table["embedding"].to_pylist())
    expected = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-6)
    assert run("encode", model, pairs, "--column", "anchor", "--out", "deep/a.npy").status == 1
    assert run("encode", model, pairs, "--column", "anchor", "--out", "deep/a.npy", "--overwrite").status == 0


def test_search(run, model, pairs):
    result = run("search", model, "sort a list of numbers 2", "--docs", pairs, "--column", "anchor", "--top", "3")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[0] == "1.000"
    assert "sort a list of numbers 2" in lines[1]
    found = run("search", model, "sort a list of numbers 2", "--docs", pairs, "--column", "anchor", "--json").json
    assert found[0]["text"] == "sort a list of numbers 2"
    assert found[0]["row"] == 10
    assert [f["score"] for f in found] == sorted((f["score"] for f in found), reverse=True)


def test_evaluate(run, model, pairs):
    result = run("evaluate", model, pairs)
    assert (result.status, result.err) == (0, "")
    assert "  anchor   <- anchor" in result.out
    found = run("evaluate", model, pairs, "--json").json
    assert found["format"] == "pairs"
    assert 0 < found["metrics"]["mrr@10"] <= 1
    prompted = run("evaluate", model, pairs, "--json", "--prompt", "anchor=mail server letters: ").json
    assert prompted["metrics"] != found["metrics"]


def test_evaluate_in_another_format(run, model, write):
    rows = [{"first": q, "second": d, "label": i % 2} for i, (q, d) in enumerate(TOPICS.items())]
    path = write("labelled.jsonl", rows)
    assert run("evaluate", model, path, "--json").json["format"] == "pairs+binary"
    assert run("evaluate", model, path, "--format", "pairs+score", "--json").json["format"] == "pairs+score"


def test_init_static_is_the_same_for_the_same_seed(run, pairs, tmp_path):
    from safetensors.numpy import load_file

    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("init-static", pairs, folder, "--dim", "8", "--seed", seed).status == 0
    tables = [next(iter(load_file(next((tmp_path / f).rglob("*.safetensors"))).values())) for f in "abc"]
    assert (tables[0] == tables[1]).all()
    assert not (tables[0] == tables[2]).all()


def train(run, *more):
    return run(
        "train", "--model", "model", "--data", "pairs.jsonl", "--loss", "mnrl", "--batch-size", 8, "--max-steps", 4, *more
    )


def test_train(run, model, pairs, tmp_path):
    result = train(run, "--out", "out", "--eval-data", "pairs.jsonl", "--learning-rate", 0.1)
    assert result.status == 0, result
    assert "  anchor   <- anchor" in result.out
    assert "mrr@10" in result.out
    assert (tmp_path / "out/modules.json").is_file()
    before, after = (run("evaluate", m, pairs, "--json").json["metrics"]["mrr@10"] for m in (model, "out"))
    assert before != after
    assert train(run, "--out", "out").status == 1  # not empty
    assert train(run, "--out", "out", "--overwrite").status == 0


@pytest.fixture
def config(run, monkeypatch):
    """The configuration that `train` would run."""
    import embedloss.training

    seen = []
    monkeypatch.setitem(embedloss.training.__dict__, "run_training", seen.append)

    def go(*arguments):
        result = run("train", *arguments)
        assert (result.status, result.err) == (0, "")
        return seen.pop()

    return go


def test_options_override_the_file_and_set_overrides_both(config, write):
    write(
        "run.yaml",
        "model: m\ndata: d\nloss: mnrl\nout: o\nepochs: 2\nbatch-size: 16\n"
        "map: {anchor: q, positive: p}\ndrop: [x]\nprompts: {anchor: 'a: '}\n",
    )
    found = config("run.yaml")
    assert (found.epochs, found.batch_size, found.model) == (2, 16, "m")
    found = config(
        "run.yaml",
        "--epochs",
        "3",
        "--batch-size",
        "32",
        "--set",
        "epochs=4",
        "--map",
        "positive=r",
        "--drop",
        "y",
        "--prompt",
        "positive=b: ",
        "--recompute",
        "--set",
        "learning-rate=1e-3",
    )
    assert (found.epochs, found.batch_size, found.recompute, found.learning_rate) == (4, 32, True, 1e-3)
    assert found.map == {"anchor": "q", "positive": "r"}
    assert found.drop == ["x", "y"]
    assert found.prompts == {"anchor": "a: ", "positive": "b: "}


def test_every_setting_has_an_option(config):
    import dataclasses
    import typing

    from embedloss.training.config import RunConfig

    hints = typing.get_type_hints(RunConfig)
    special = {"map": ["--map", "a=b"], "drop": ["--drop", "c"], "prompts": ["--prompt", "a=b"], "plugins": []}
    special |= {"lora": ["--lora", "r=8"], "normalize": ["--normalize"], "recompute": ["--recompute", "auto"]}
    for field in dataclasses.fields(RunConfig):
        if field.name in special:
            arguments = special[field.name]
        elif hints[field.name] is bool:
            arguments = [f"--{field.name.replace('_', '-')}"]
        else:
            choices = typing.get_args(hints[field.name]) if typing.get_origin(hints[field.name]) is typing.Literal else ()
            value = choices[1] if choices else "7" if hints[field.name] not in (str, str | None) else "text"
            arguments = [f"--{field.name.replace('_', '-')}", value]
        if arguments:
            assert getattr(config(*arguments), field.name) != getattr(RunConfig(), field.name), field.name


def test_plugin_files_are_kept_in_the_configuration(config, write):
    write("empty_plugin.py", "")
    assert config("--plugin", "empty_plugin.py", "--model", "m").plugins == ["empty_plugin.py"]


def test_demo_data(run, tmp_path, monkeypatch):
    """On source files of our own: both sides, no module and no text on both."""
    from embedloss_cli import demo

    root = tmp_path / "site"
    for m in range(20):
        (root / f"module{m}").mkdir(parents=True)
        for n in range(3):
            own = f"Open the {'q' * (m + 2)} archive of {'z' * (n + 2)} things."
            rest = f"It reads the {'a' * (m + 2)} and {'b' * (n + 2)} words that somebody has written into it."
            shared = "Same sentence in every module here.\n\nSame text in every module, so that it may be there only once."
            body = f'"""{own}\n\n{rest}\n"""\ndef f():\n    """{shared}"""\n'
            (root / f"module{m}" / f"part{n}.py").write_text(body, encoding="utf-8")
        (root / f"module{m}" / "test_x.py").write_text(
            '"""Never read the tests of things.\n\nNothing of this text may be found in the data at all."""', encoding="utf-8"
        )
    (root / "broken.py").write_text("def (", encoding="utf-8")
    files = demo.source_files(root)
    assert "broken" in files
    assert not any(p.name == "test_x.py" for found in files.values() for p in found)
    monkeypatch.setattr(demo, "source_files", lambda: files)
    result = run("demo-data", "demo")
    assert (result.status, result.err) == (0, "")
    train, test, docs = (
        [json.loads(line) for line in (tmp_path / "demo" / name).read_text().splitlines()]
        for name in ("train.jsonl", "test.jsonl", "docs.jsonl")
    )
    assert len(train) + len(test) in (60 + 1, 60)
    assert 0 < len(test) <= 0.15 * 61
    assert len(docs) == len(test)
    assert not {r["module"] for r in train} & {r["module"] for r in test}
    anchors = [r["anchor"] for r in (*train, *test)]
    assert len(set(anchors)) == len(anchors)
    assert sum("Same sentence" in a for a in anchors) <= 1
    before = (tmp_path / "demo/train.jsonl").read_bytes()
    assert run("demo-data", "demo").status == 1
    assert run("demo-data", "demo", "--overwrite").status == 0
    assert (tmp_path / "demo/train.jsonl").read_bytes() == before
    assert run("check", "demo/train.jsonl", "--loss", "mnrl", "--drop", "module").status == 0


FIRST, REST = "Open the compressed file again.", "It is read in blocks of some size until the very end."


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (f"{FIRST}\n\n{REST}", (FIRST, REST)),
        (f"{FIRST} {REST}", (FIRST, REST)),
        ("Open it.\n\nIt is read in blocks of some size until the very end.", None),
        ("Open the compressed file again.", None),
        ("Open the compressed file again.\n\nSee above.", None),
        ("Open the compressed file again.\n\n" + "1 2 3 | 4 5 6 | == == ==\n" * 20, None),
    ],
)
def test_split_of_a_docstring(docstring, expected):
    from embedloss_cli.demo import split_docstring

    assert split_docstring(docstring) == expected


def test_replay_of_a_folder_without_a_batch_is_refused(run, tmp_path):
    result = run("replay", str(tmp_path))
    assert result.status == 1
    assert "E403" in result.err
    assert "batch.pt" in result.err
