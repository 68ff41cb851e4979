"""Every malformed data set is refused before a model is loaded, by training and by `embedloss check`, with row and remedy."""

import importlib.util
import sys
from pathlib import Path

import pytest

from embedloss.errors import EmbedlossError
from embedloss.examine import examine
from embedloss.registry import create_loss
from embedloss.training.config import RunConfig
from embedloss.training.run import prepare

SOURCE = Path(__file__).parent / "bench" / "malformed_sets.py"
specification = importlib.util.spec_from_file_location("malformed_sets", SOURCE)
malformed_sets = sys.modules["malformed_sets"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(malformed_sets)
SETS = malformed_sets.SETS


def train(case, file, folder):
    settings = {"model": "static(dimension=8)", "data": str(file), "loss": case.loss, "out": str(folder / "out"), **case.config}
    prepare(RunConfig(**settings), say=lambda text: None)


def check(case, file):
    found = examine(str(file), spec=create_loss(case.loss).spec, sampler=case.config.get("sampler", "auto"))
    found.report.raise_if_faulty()


def refusal(door, *arguments):
    with pytest.raises(EmbedlossError) as caught:
        door(*arguments)
    return caught.value


@pytest.mark.parametrize("case", SETS, ids=lambda case: case.what)
def test_refused_with_code_row_and_remedy(tmp_path, case):
    file = tmp_path / f"data{case.suffix}"
    file.write_bytes(case.data())
    errors = [refusal(train, case, file, tmp_path)]
    if "prompts" not in case.config:  # a setting of training
        errors.append(refusal(check, case, file))
    for error in errors:
        assert error.code == case.code
        for part in case.says:
            assert part in str(error)
    assert list(tmp_path.iterdir()) == [file]  # nothing is written


def test_there_are_enough():
    assert len(SETS) >= 60
    assert len({case.what for case in SETS}) == len(SETS)
    assert {case.code for case in SETS} >= {"E101", "E102", "E103", "E104", "E105", "E106", "E401"}


@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        ("mnrl", malformed_sets.pairs()),
        ("cosent", malformed_sets.scored(malformed_sets.GOOD)),
        ("triplet", malformed_sets.triplets()),
        ("batch-all-triplet", malformed_sets.classes(malformed_sets.HALF)),
        ("softmax(num_labels=3)", malformed_sets.scored([0, 1, 2, 0, 1, 2, 0, 1], "label")),
        ("softmax(num_labels=3)", malformed_sets.scored(["a", "b", "c", "a", "b", "c", "a", "b"], "label")),
        ("margin-mse", malformed_sets.tuples([[1.0, 2.0]] * 8)),
        ("distill-kl-div", malformed_sets.tuples([[3.0, 2.0, 1.0]] * 8)),
        ("mse", malformed_sets.vectors([[0.1] * 32] * 8)),
        ("list-net", malformed_sets.lists([[2, 1, 0]] * 8)),
        ("list-mle", malformed_sets.lists([[2, 1, 0]] * 8)),
        ("contrastive-tension-in-batch-negatives", [{"anchor": t, "positive": t} for t in malformed_sets.WORDS]),
        ("contrastive-tension", [{"anchor": "a", "positive": "a"}, *malformed_sets.pairs()]),
    ],
)
def test_what_they_were_made_of_is_accepted(tmp_path, loss, rows):
    """The faults are what is refused, and not the data round them."""
    file = tmp_path / "data.jsonl"
    file.write_bytes(malformed_sets.lines(rows))
    case = malformed_sets.Malformed("", loss, b"", "", (), "")
    check(case, file)
    train(case, file, tmp_path)


def test_more_classes_by_name_than_outputs(tmp_path):
    rows = malformed_sets.scored(["a", "b", "c", "d"] * 2, "label")
    file = tmp_path / "data.jsonl"
    file.write_bytes(malformed_sets.lines(rows))
    case = malformed_sets.Malformed("", "softmax(num_labels=3)", b"", "", (), "")
    for error in (refusal(check, case, file), refusal(train, case, file, tmp_path)):
        assert (error.code, "Type num_labels=4" in str(error)) == ("E105", True)


def test_evaluation_data_need_not_differ_from_row_to_row(tmp_path):
    """One query with several answers can be searched for, though nothing can be learnt from it."""
    file, dev = tmp_path / "data.jsonl", tmp_path / "dev.jsonl"
    file.write_bytes(malformed_sets.lines(malformed_sets.pairs()))
    dev.write_bytes(malformed_sets.lines([{**row, "anchor": "the same"} for row in malformed_sets.pairs()]))
    case = malformed_sets.Malformed("", "mnrl", b"", "", (), "", config={"eval_data": str(dev)})
    train(case, file, tmp_path)
    found = examine(str(file), spec=create_loss("mnrl").spec, eval_data=str(dev))
    assert not found.evaluation.report.faults
    assert refusal(check, case, dev).code == "E106"
