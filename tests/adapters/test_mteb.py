"""MTEB evaluates what we save, and finds what we find. Needs the package mteb, which no session installs."""

from __future__ import annotations

from typing import Any

import pytest

from embedloss import load_encoder
from embedloss.evaluation import evaluate
from embedloss.testing.models import SENTENCES, tiny_bert

pytest.importorskip("sentence_transformers")
mteb = pytest.importorskip("mteb")

ROWS = [
    {"sentence1": a, "sentence2": b, "score": float(len(set(a.lower().split()) & set(b.lower().split())))}
    for a in SENTENCES
    for b in SENTENCES
    if a != b
]


def test_a_task_made_of_local_rows(tmp_path: Any) -> None:
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(tiny_bert(tmp_path / "bert"))
    encoder.save(tmp_path / "saved")

    class Local(AbsTaskSTS):
        unknown = dict.fromkeys(["reference", "date", "domains", "task_subtypes", "license", "annotations_creators", "dialect"])
        metadata = TaskMetadata(
            name="LocalSTS", description="Rows of this test", type="STS", category="t2t", modalities=["text"],
            dataset={"path": "local/local", "revision": "1"}, eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="cosine_spearman", sample_creation=None, bibtex_citation=None, **unknown,
        )  # fmt: skip
        min_score, max_score = 0, 1

        def load_data(self, **_: Any) -> None:
            self.dataset, self.data_loaded = DatasetDict({"test": Dataset.from_list(ROWS)}), True

    found = mteb.evaluate(SentenceTransformer(str(tmp_path / "saved"), device="cpu"), [Local()], cache=None)
    theirs = found.task_results[0].scores["test"][0]
    rows = [{"first": row["sentence1"], "second": row["sentence2"], "label": row["score"]} for row in ROWS]
    ours = evaluate(encoder, rows, "pairs+score")
    assert abs(ours["pearson_cosine"]) > 0.01
    assert theirs["cosine_pearson"] == pytest.approx(ours["pearson_cosine"], abs=1e-6)
    assert theirs["euclidean_pearson"] == pytest.approx(ours["pearson_euclidean"], abs=1e-6)
