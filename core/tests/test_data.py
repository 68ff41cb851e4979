import json
import socket

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from embedloss.data import load_rows, looks_local
from embedloss.errors import EmbedlossError

ROWS = [{"anchor": "a", "positive": "é ü 中"}, {"anchor": "b", "positive": "y\u2028z"}]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(rows):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.ndjson", lines(ROWS)),
        ("A.JSONL", lines(ROWS)),
        ("a.jsonl", "\ufeff" + lines(ROWS)),
        ("a.jsonl", "\n" + lines(ROWS).replace("\n", "\r\n\r\n")),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"data": ROWS, "version": 1})),
        ("a.json", json.dumps({"anchor": ["a", "b"], "positive": [r["positive"] for r in ROWS]})),
        ("a.json", lines(ROWS)),
        ("a.csv", 'anchor,positive\na,é ü 中\n"b","y\u2028z"\n'),
        ("a.tsv", "anchor\tpositive\na\té ü 中\nb\ty\u2028z\n\n"),
    ],
)
def test_the_same_rows_from_every_kind_of_file(tmp_path, name, content):
    path = write(tmp_path / name, content)
    assert load_rows(path).to_list() == ROWS
    assert load_rows(str(path)).column_names == ["anchor", "positive"]
    assert [p.name for p in tmp_path.iterdir()] == [name]  # no cache beside the file


def test_parquet_and_saved_folders(tmp_path):
    table = pyarrow.table({"anchor": ["a", "b"], "kind": pyarrow.array(["x", "y"]).dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert load_rows(tmp_path / "a.parquet").to_list() == [{"anchor": "a", "kind": "x"}, {"anchor": "b", "kind": "y"}]
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert load_rows(tmp_path / "one").to_list() == ROWS
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    both.save_to_disk(tmp_path / "two")
    before = sorted(p for p in (tmp_path / "two").rglob("*"))
    assert len(load_rows(tmp_path / "two")) == 2
    assert len(load_rows(tmp_path / "two", split="test")) == 1
    assert sorted(p for p in (tmp_path / "two").rglob("*")) == before


def test_columns_of_csv_have_types(tmp_path):
    content = 'i,f,t,zip,l,n\n1,0.5,x,007,"[1, 2]",\n2,1e3,3,012,[3],4\n'
    dataset = load_rows(write(tmp_path / "a.csv", content))
    assert dataset.to_list() == [
        {"i": 1, "f": 0.5, "t": "x", "zip": "007", "l": [1, 2], "n": None},
        {"i": 2, "f": 1000.0, "t": "3", "zip": "012", "l": [3], "n": 4},
    ]


def test_columns_that_come_late_or_go_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("embedloss.data._CHUNK", 2)
    rows = [{"a": 1}, {"a": 2}, {"a": 2.5, "b": "x"}, {}, {"c": ["y"]}, {"c": []}]
    dataset = load_rows(write(tmp_path / "a.jsonl", lines(rows)))
    assert dataset["a"][:] == [1, 2, 2.5, None, None, None]
    assert dataset["b"][:] == [None, None, "x", None, None, None]
    assert dataset["c"][:] == [None, None, None, None, ["y"], []]


@pytest.mark.parametrize("chunk", [1, 2, 10_000])
def test_mixed_types_name_the_row(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("embedloss.data._CHUNK", chunk)
    path = write(tmp_path / "a.jsonl", lines([{"q": None}, {"q": "x"}, {"q": "y"}, {"q": 3}, {"q": "z"}]))
    with pytest.raises(EmbedlossError, match=r"E104: column 'q' of .* mixes types: row 4 holds"):
        load_rows(path)


BAD = {
    "empty.jsonl": (b"", "is empty"),
    "blank.jsonl": (b"\n \n", "holds no rows"),
    "broken.jsonl": (b'{"a": 1}\n\n{"a": \n{"a": 2}\n', "line 3 is not JSON: Expecting value at column"),
    "cut.jsonl": (b'{"a": "x"}\n{"a": "y', "line 2 is not JSON: Unterminated string"),
    "list.jsonl": (b'{"a": 1}\n[1]\n', "line 2 holds a list, not a row"),
    "pretty.jsonl": (b'{\n"a": 1\n}\n', "name the file .json"),
    "latin.jsonl": (b'{"a": "x"}\n{"a": "\xe9"}\n', "is not UTF-8: byte 0xe9 in line 2"),
    "utf16.csv": ("a,b\n1,2\n".encode("utf-16"), "is UTF-16, not UTF-8"),
    "cut.json": (b'[{"a": 1},\n {"a": ', "line 2 is not JSON"),
    "none.json": (b"[]", "holds no rows"),
    "scalar.json": (b"3", "holds a number, not a list of rows"),
    "mixed.json": (b'[{"a": 1}, "b"]', "row 2 holds a text, not a row"),
    "uneven.json": (b'{"a": [1, 2], "b": [1]}', "different lengths: a 2, b 1"),
    "ragged.csv": (b"a,b\n1,2\n3\n4,5\n", "line 3 has 1 cells, the header has 2 (a, b): 3"),
    "header.csv": (b"a,b\n", "a header and no rows"),
    "quote.csv": (b'a,b\n"x,2\n', "line 2 is not CSV"),
    "twice.csv": (b"a,a\n1,2\n", "the column 'a' twice"),
    "unnamed.csv": (b"a,\n1,2\n", "a column without a name"),
    "semicolon.csv": (b"a;b\n1;2\n", "is separated by ';'"),
    "rows.jsonl": (b"{}\n{}\n", "rows without columns"),
    "fake.parquet": (b"PAR1 no PAR1", "is not a Parquet file, or damaged"),
    "data.xlsx": (b"PK", "is of an unknown kind ('.xlsx'). Known kinds: .jsonl"),
    "data": (b"a", "is of an unknown kind ('no extension')"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read(tmp_path, name):
    content, part = BAD[name]
    path = write(tmp_path / name, content)
    with pytest.raises(EmbedlossError) as caught:
        load_rows(path)
    assert caught.value.code == "E103"
    assert part in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("1" * 30, "row 2 holds a value that cannot be used"),
        ('"\\ud800"', "row 2: the text is not valid Unicode"),
        ('["x", 1]', "row 2 holds a list of mixed types"),
    ],
)
def test_values_that_no_column_can_hold(tmp_path, value, part):
    path = write(tmp_path / "a.jsonl", '{"a": null}\n{"a": ' + value + "}\n")
    with pytest.raises(EmbedlossError) as caught:
        load_rows(path)
    assert caught.value.code == "E104"
    assert part in caught.value.message


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(EmbedlossError, match=r"E103: folder .* is not a data set saved by `datasets`"):
        load_rows(tmp_path)
    write(tmp_path / "train.jsonl", lines(ROWS))
    with pytest.raises(EmbedlossError, match=r"It holds train\.jsonl; give one of these files"):
        load_rows(tmp_path)
    write(tmp_path / "dataset_info.json", "{")
    with pytest.raises(EmbedlossError, match=r"E103: the data set in folder .* is damaged"):
        load_rows(tmp_path)


def test_splits(tmp_path):
    datasets.DatasetDict(a=datasets.Dataset.from_list(ROWS), b=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "two")
    with pytest.raises(EmbedlossError, match=r"several splits and none is called 'train'\. Splits: a, b"):
        load_rows(tmp_path / "two")
    with pytest.raises(EmbedlossError, match=r"no split 'c'\. Splits: a, b"):
        load_rows(tmp_path / "two", split="c")
    with pytest.raises(EmbedlossError, match="has no splits"):
        load_rows(write(tmp_path / "a.jsonl", lines(ROWS)), split="train")


MISSING = [
    "gone.jsonl",
    "sub/gone.csv",
    "./gone",
    "~/no-such-file.jsonl",
    "/no/such/folder",
    "gone",
    "a/b/c/d",
    "x.csv:train",
    "",
    "a\0b",
    "x" * 5000,
]


@pytest.mark.parametrize("name", MISSING)
def test_a_local_looking_name_never_reaches_the_network(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmbedlossError) as caught:
        load_rows(name)
    assert caught.value.code == "E103"


def test_a_typo_below_an_existing_folder_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", lines(ROWS))
    assert looks_local("data/trian")
    with pytest.raises(EmbedlossError, match=r"Did you mean 'data/train\.jsonl'\?"):
        load_rows("data/trian.jsonl")


@pytest.mark.parametrize("name", ["owner/name", "owner/name:test", "owner/name/config", "owner/name-v1.1/en:train"])
def test_hub_ids(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert not looks_local(name)
    calls = []

    def fake(path, config, split, streaming):
        assert not streaming
        calls.append((path, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert load_rows(name).to_list() == ROWS
    path, _, split = name.partition(":")
    parts = path.split("/")
    assert calls == [("/".join(parts[:2]), parts[2] if len(parts) > 2 else None, split or "train")]


def test_a_hub_id_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fake(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    with pytest.raises(EmbedlossError, match=r"E103: there is no file or folder 'owner/name', and .* ConnectionError: offline"):
        load_rows("owner/name")
