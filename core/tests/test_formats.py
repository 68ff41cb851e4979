import json

import pytest

from embedloss.binding import LABEL_COLUMN_KINDS, bind
from embedloss.check import check_rows, column_kinds
from embedloss.errors import EmbedlossError
from embedloss.formats import FORMATS, LABELS, LIST_ROLES, ROLE_COLUMNS, formats_like, get_format
from embedloss.spec import LossSpec


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_row_binds_to_its_own_format(name):
    import datasets

    fmt = FORMATS[name]
    row = json.loads(fmt.example)
    dataset = datasets.Dataset.from_list([row, row])
    binding = bind(column_kinds(dataset), [fmt], loss_name="any")
    assert binding.format == fmt
    assert set(binding.columns) == set(fmt.roles)
    assert (binding.label is None) == (fmt.label is None)
    spec = LossSpec(name="any", target="a:b", summary="", family="", formats=(fmt,))
    assert check_rows(dataset, binding, spec).faults == []


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_row_is_recognised_among_all_formats(name):
    import datasets

    row = json.loads(FORMATS[name].example)
    kinds = column_kinds(datasets.Dataset.from_list([row, row]))
    found = bind(kinds, list(FORMATS.values()), loss_name="any")
    assert set(found.columns) == set(FORMATS[name].roles)
    same_columns = {"pairs+class", "pairs+binary"}  # a whole number may be either
    assert found.format.name == name or {found.format.name, name} <= same_columns


def test_tables_agree():
    for fmt in FORMATS.values():
        assert set(fmt.roles) <= set(ROLE_COLUMNS)
        assert fmt.lists <= LIST_ROLES
        assert fmt.label is None or fmt.label in LABELS
    assert set(LABEL_COLUMN_KINDS) == set(LABELS)
    for role, columns in ROLE_COLUMNS.items():
        assert columns[0] == role


def test_names():
    assert get_format(" Pairs+Score ").name == "pairs+score"
    assert get_format("n_tuples").name == "n-tuples"
    assert [f.name for f in formats_like("pairs")] == ["pairs", "pairs+class", "pairs+binary", "pairs+score"]
    assert [f.name for f in formats_like("pairs+score")] == ["pairs+score"]
    with pytest.raises(EmbedlossError, match=r"E101: unknown data format 'pears'.*pairs\+score"):
        get_format("pears")
