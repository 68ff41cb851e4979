"""Embedding a file: interrupted, on several processes, with faulty rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedloss import bulk
from embedloss.bulk import encode_file
from embedloss.encoders.static import new_static_encoder
from embedloss.errors import EmbedlossError

torch.set_num_threads(1)
TEXTS = [f"text {i} " + "word " * (i % 9) for i in range(50)]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    new_static_encoder(TEXTS, dimension=8).save(tmp_path / "model")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(TEXTS)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bulk, "BLOCK", 10)
    return tmp_path


def wanted(work: Path) -> np.ndarray:
    from embedloss import load_encoder

    found: np.ndarray = load_encoder(work / "model").encode(TEXTS)
    return found


def test_an_interrupted_run_goes_on_where_it_stopped(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        told.append(done)
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_file("model", "a.jsonl", "out.npy", progress=stop)
    assert told == [0, 10, 20]
    assert not Path("out.npy").exists()
    told.clear()
    assert encode_file("model", "a.jsonl", "out.npy", progress=lambda stage, done, total: told.append(done)) == (50, 8)
    assert told == [20, 30, 40, 50]
    np.testing.assert_array_equal(np.load("out.npy"), wanted(work))
    assert not Path("out.npy.parts").exists()
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        encode_file("model", "a.jsonl", "out.npy", progress=stop)
    told.clear()
    encode_file("model", "a.jsonl", "out.npy", prompt="another ", progress=lambda stage, done, total: told.append(done))
    assert told[0] == 0  # other embeddings are not taken for these
    assert not np.allclose(np.load("out.npy"), wanted(work))


@pytest.mark.slow
def test_several_processes_give_the_same(work: Path) -> None:
    assert encode_file("model", "a.jsonl", "out.parquet", processes=2) == (50, 8)
    import pyarrow.parquet

    table: Any = pyarrow.parquet.read_table("out.parquet")
    assert table["text"].to_pylist() == TEXTS
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), wanted(work), atol=1e-6)


def test_what_cannot_be_embedded_is_refused(work: Path) -> None:
    rows = [{"text": "a", "other": "b"}, {"text": " ", "other": "c"}, {"text": None, "other": "d"}]
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(EmbedlossError, match=r"E104: column 'text' of 'bad.jsonl' has 2 null or empty texts: rows 2, 3"):
        encode_file("model", "bad.jsonl", "out.npy")
    with pytest.raises(EmbedlossError, match=r"E102: column 'n' of 'a.jsonl' holds no texts"):
        encode_file("model", "a.jsonl", "out.npy", column="n")
    with pytest.raises(EmbedlossError, match=r"E102: 'a.jsonl' has no column 'txt'. Did you mean"):
        encode_file("model", "a.jsonl", "out.npy", column="txt")
    assert not list(work.glob("out*"))
