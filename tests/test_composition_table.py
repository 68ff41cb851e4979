"""Every registered loss under every combination has the gradients it should have, or a reason why there are none.

The table itself, and how a cell is computed, is in composition_table.py beside this file.
"""

import sys
from pathlib import Path

import pytest
import torch

from embedloss import list_losses

pytest.importorskip("embedloss_modifiers")
sys.path.insert(0, str(Path(__file__).parent))
import composition_table as composing

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_cell_is_equal_or_says_why_not_and_the_page_shows_it():
    table = composing.make_table()
    cells = [(row, column, cell) for row, line in table.items() for column, cell in zip(composing.COLUMNS, line, strict=True)]
    assert {row.spec.name for row in table} == {spec.name for spec in list_losses()}
    assert len(cells) == len(table) * len(composing.COLUMNS)
    unequal = [
        f"{row.title}, {column.title}: {cell}"
        for row, column, cell in cells
        if not (cell if isinstance(cell, str) else cell <= composing.TOLERANCE)
    ]
    assert not unequal, "\n".join(unequal)
    for row, column, cell in cells:  # nothing is undefined on a bi-encoder, nor without a modifier or regulariser
        assert not isinstance(cell, str) or (row.kind == "cross-encoder" and column.needs)
    shown = composing.PAGE.read_text(encoding="utf-8").partition(composing.BEGIN)[2].partition(composing.END)[0]
    assert shown.strip() == composing.markdown(table).strip(), "run `python tests/composition_table.py`"


def test_a_column_can_fail():
    """Without gathering, an in-batch loss on two processes has other gradients."""
    row = next(r for r in composing.table_rows() if r.spec.name == "multiple-negatives-ranking")
    column = composing.Column("not gathered", processes=2, gather=False)
    [found] = composing.run_processes([(row, column)])
    assert 1e-3 < composing.distance(found, composing.reference(row, row.expression(column))) < float("inf")


def test_a_wrong_gradient_is_seen():
    wanted = {"a": torch.ones(3), "b": torch.zeros(2)}
    assert composing.distance(wanted, wanted) == 0
    assert composing.distance({**wanted, "b": torch.full((2,), 1e-6)}, wanted) == pytest.approx(1e-6)
    assert composing.distance({"a": wanted["a"]}, wanted) == float("inf")  # one is missing
    assert composing.distance({"a": torch.zeros(3)}, {"a": torch.zeros(3)}) == float("inf")  # nothing to compare
    assert composing.distance({"a": torch.full((3,), float("nan"))}, {"a": torch.ones(3)}) == float("inf")
