import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedloss.check import bind, bound_dataset, check_rows, class_ids, column_kinds
from embedloss.errors import EmbedlossError
from embedloss.spec import LossSpec

NAN = float("nan")
PAIR = {"anchor": ["a", "b", "c"], "positive": ["x", "y", "z"]}
BOTH = {"first": ["a", "b", "c"], "second": ["x", "y", "z"]}


def spec(*formats, **more):
    return LossSpec(**{"name": "some-loss", "target": "a:b", "summary": "", "family": "f", "formats": formats, **more})


def check(data, *formats, mapping=None, **more):
    dataset = data if isinstance(data, datasets.Dataset) else datasets.Dataset.from_dict(data)
    loss = spec(*formats, **more)
    binding = bind(column_kinds(dataset), loss.data_formats(), loss_name=loss.name, mapping=mapping)
    return dataset, binding, check_rows(dataset, binding, loss)


def bound(data, *formats, **more):
    dataset, binding, report = check(data, *formats, **more)
    report.raise_if_faulty()
    return bound_dataset(dataset, binding)


def test_kinds_of_columns():
    table = pyarrow.table(
        {
            "text": ["a"],
            "large": pyarrow.array(["a"], pyarrow.large_string()),
            "texts": [["a"]],
            "flag": [True],
            "int": pyarrow.array([1], pyarrow.uint8()),
            "float": pyarrow.array([1], pyarrow.float32()),
            "floats": [[1, 2]],
            "fixed": pyarrow.array([[1.0, 2.0]], pyarrow.list_(pyarrow.float32(), 2)),
            "vectors": [[[1.0]]],
            "empty": pyarrow.nulls(1),
            "empty_list": [[]],
            "object": [{"a": 1}],
            "bytes": [b"a"],
        }
    )
    assert list(column_kinds(datasets.Dataset(table)).values()) == [
        "text",
        "text",
        "texts",
        "int",
        "int",
        "float",
        "floats",
        "floats",
        "vectors",
        "empty",
        "empty",
        "other",
        "other",
    ]


FAULTS = [
    ({"anchor": ["a", None, "c"], "positive": ["x", "y", "z"]}, "pairs", {}, "E104", "anchor", (2,), "null"),
    ({"anchor": ["a", "", " \t\n"], "positive": ["x", "y", "z"]}, "pairs", {}, "E104", "anchor", (2, 3), "empty text"),
    ({"anchor": ["a"], "positive": ["x"]}, "pairs", {}, "E106", None, (), "the data set has 1 row; at least two are needed"),
    ({**PAIR, "negative": [["n"], [], ["m"]]}, "n-tuples", {}, "E104", "negative", (2,), "an empty list"),
    ({**PAIR, "negative": [["n"], ["o", None], ["m"]]}, "n-tuples", {}, "E104", "negative", (2,), "a null in the list"),
    ({**PAIR, "negative": [["n"], None, ["m", " "]]}, "n-tuples", {}, "E104", "negative", (3,), "an empty text in the list"),
    (
        {**PAIR, "negative_1": ["n", None, "o"], "negative_2": [None, None, "p"]},
        "n-tuples",
        {},
        "E104",
        None,
        (2,),
        "no text for 'negative'",
    ),
    (
        {**PAIR, "negative_1": ["n", "", "o"], "negative_2": ["q", "r", "p"]},
        "n-tuples",
        {},
        "E104",
        "negative_1",
        (2,),
        "write null",
    ),
    ({**BOTH, "label": [1, -1, 0]}, "pairs+binary", {}, "E105", "label", (2,), "Write 0 instead of -1."),
    ({**BOTH, "label": [1, 0, 2]}, "pairs+binary", {}, "E105", "label", (3,), "the label is 2; 'some-loss' takes 0 or 1"),
    ({**BOTH, "label": [1.0, 0.0, 0.5]}, "pairs+binary", {}, "E105", "label", (3,), "the label is 0.5"),
    ({**BOTH, "label": [1, None, 0]}, "pairs+binary", {}, "E105", "label", (2,), "no label (null)"),
    ({**BOTH, "score": [0.1, NAN, 0.3]}, "pairs+score", {}, "E105", "score", (2,), "not finite"),
    ({**BOTH, "score": [0.1, float("inf"), 0.3]}, "pairs+score", {}, "E105", "score", (2,), "not finite"),
    (
        {**BOTH, "score": [0, 5, 1]},
        "pairs+score",
        {"label_range": (-1, 1)},
        "E105",
        "score",
        (2,),
        "labels from 0 to 5; 'some-loss' takes -1 to 1. Type --scale-labels",
    ),
    ({**BOTH, "label": [0, -1, 1]}, "pairs+class", {}, "E105", "label", (2,), "the class id is -1"),
    ({**BOTH, "label": [0, 0.5, 1]}, "pairs+class", {}, "E105", "label", (2,), "a class id is a whole number"),
    ({**BOTH, "label": ["x", "", "y"]}, "pairs+class", {}, "E105", "label", (2,), "an empty class name"),
    (
        {"query": ["a", "b"], "docs": [["x", "y"], ["z"]], "grades": [[1, 2], [1, 2]]},
        "listwise",
        {},
        "E105",
        "grades",
        (2,),
        "2 numbers for 1 texts (docs)",
    ),
    (
        {"query": ["a", "b"], "docs": [["x", "y"], ["z"]], "grades": [[1, 2], [NAN]]},
        "listwise",
        {},
        "E105",
        "grades",
        (2,),
        "null, NaN or infinite",
    ),
    (
        {"query": ["a", "b"], "docs": [["x", "y"], ["z"]], "grades": [[1, 2], None]},
        "listwise",
        {},
        "E105",
        "grades",
        (2,),
        "no label (null)",
    ),
    (
        {"query": ["a", "b"], "positive": ["x", "y"], "negative": [["m"], ["n", "o"]], "scores": [[1, 2], [1, 2]]},
        "n-tuples+scores",
        {},
        "E105",
        "scores",
        (2,),
        "2 numbers for 3 texts (positive and negative)",
    ),
    (
        {"query": ["a", "b"], "positive": ["x", "y"], "negative": [["m"], ["n", "o"]], "margins": [[1], [1]]},
        "n-tuples+margins",
        {},
        "E105",
        "margins",
        (2,),
        "1 numbers for 2 texts (negative)",
    ),
    (
        {"text": ["a", "b"], "embedding": [[1.0, 2.0], [1.0]]},
        "text+embedding",
        {},
        "E105",
        "embedding",
        (2,),
        "a vector of 1 numbers; row 1 has 2",
    ),
    (
        {"text": ["a", "b"], "embedding": [[1.0, NAN], [1.0, 2.0]]},
        "text+embedding",
        {},
        "E105",
        "embedding",
        (1,),
        "null, NaN or infinite",
    ),
    (
        {"text": ["a", "b"], "embedding": [[1.0, 2.0], []]},
        "text+embedding",
        {},
        "E105",
        "embedding",
        (2,),
        "a vector of 0 numbers",
    ),
    (
        {"texts": [["a"], ["b", "c"]], "embedding": [[[1.0]], [[2.0]]]},
        "texts+embedding",
        {},
        "E105",
        "embedding",
        (2,),
        "1 vectors for 2 texts",
    ),
    (
        {"text": ["a", "b", "c"], "label": [0, 1, 1]},
        "single+class",
        {"sampler": "group-by-label"},
        "E106",
        "label",
        (),
        "two classes with two rows each; 1 of 2",
    ),
]


@pytest.mark.parametrize(("data", "format_", "more", "code", "column", "rows", "part"), FAULTS)
def test_each_fault_is_named_with_column_and_rows(data, format_, more, code, column, rows, part):
    _, _, report = check(data, format_, **more)
    fault = next(f for f in report.faults if part in f.message)
    assert (fault.code, fault.column, fault.rows) == (code, column, rows)
    with pytest.raises(EmbedlossError) as caught:
        report.raise_if_faulty()
    assert part in caught.value.message


def test_all_faults_at_once():
    data = {"first": ["a", "", None, "d"], "second": ["", "y", "z", None], "score": [NAN, 9, None, 0.5]}
    _, _, report = check(data, "pairs+score", label_range=(0, 1))
    assert [f.code for f in report.faults] == ["E104"] * 4 + ["E105"] * 3
    with pytest.raises(EmbedlossError) as caught:
        report.raise_if_faulty()
    assert caught.value.code == "E104"
    assert len(caught.value.message.splitlines()) == 8
    assert caught.value.message.startswith("the data set has 7 faults:")


def test_many_rows_are_counted_not_listed():
    _, _, report = check({"anchor": [""] * 1000, "positive": ["x"] * 1000}, "pairs")
    assert str(report.faults[0]).startswith("column 'anchor', rows 1, 2, 3, 4, 5 and 995 more: empty text")


def test_limit_and_scaling():
    dataset, binding, _ = check({**BOTH, "score": [0.5, 5, 1]}, "pairs+score")
    loss = spec("pairs+score", label_range=(0, 1))
    assert check_rows(dataset, binding, loss, limit=1).faults[0].code == "E106"
    assert check_rows(dataset, binding, loss).faults
    report = check_rows(dataset, binding, loss, scale_labels=True)
    assert (report.faults, report.label_span) == ([], (0.5, 5.0))
    scaled = bound_dataset(dataset, binding, scale=(report.label_span, loss.label_range))["label"][:]
    assert scaled == pytest.approx([0, 1, 0.5 / 4.5])
    assert min(scaled) >= 0
    assert max(scaled) <= 1


@pytest.mark.parametrize(
    ("data", "formats", "part"),
    [
        ({**BOTH, "label": [1, 1, 1]}, ["pairs+binary"], "every label in 'label' is 1"),
        ({**BOTH, "score": [0.5, 0.5, 0.5]}, ["pairs+score"], "nothing to rank"),
        ({**BOTH, "label": [1, 2, 3]}, ["pairs+class"], "3 of the class ids 0 to 3"),
    ],
)
def test_warnings(data, formats, part):
    _, _, report = check(data, *formats)
    assert report.faults == []
    assert part in report.warnings[0]


def test_bound_rows_have_the_names_of_the_roles_and_keep_their_order():
    rows = bound({"id": ["i", "j", "k"], "query": ["a", "b", "c"], "answer": ["x", "y", "z"], "length": [1, 2, 3]}, "pairs")
    assert rows.column_names == ["anchor", "positive", "id"]
    assert rows.to_list()[1] == {"anchor": "b", "positive": "y", "id": "j"}


def test_list_roles_are_lists():
    expected = [["m"], ["n", "o"], ["p"]]
    assert bound({**PAIR, "negative": expected}, "n-tuples")["negative"][:] == expected
    assert (
        bound({**PAIR, "negative_1": ["m", "n", None], "negative_2": [None, "o", "p"]}, "n-tuples")["negative"][:] == expected
    )
    assert bound({**PAIR, "negative": ["m", "n", "o"]}, "n-tuples")["negative"][:] == [["m"], ["n"], ["o"]]
    assert bound({**PAIR, "negative": ["m", "n", "o"]}, "triplets", "n-tuples")["negative"][:] == ["m", "n", "o"]


def test_classes_by_name_become_ids():
    dataset, binding, report = check({**BOTH, "label": ["no", "yes", "maybe"]}, "pairs+class")
    assert report.classes == class_ids(dataset, binding) == {"maybe": 0, "no": 1, "yes": 2}
    rows = bound_dataset(dataset, binding)
    assert rows["label"][:] == [1, 2, 0]
    assert rows.features["label"].names == ["maybe", "no", "yes"]
    fewer = datasets.Dataset.from_dict({"first": ["a", "b"], "second": ["x", "y"], "label": ["yes", "no"]})
    assert bound_dataset(fewer, binding, classes=report.classes)["label"][:] == [2, 1]
    other = datasets.Dataset.from_dict({"first": ["a", "b"], "second": ["x", "y"], "label": ["yes", "never"]})
    with pytest.raises(EmbedlossError, match=r"E105: column 'label', row 2: unknown class 'never'\. Known: maybe, no, yes"):
        bound_dataset(other, binding, classes=report.classes)


def test_class_labels_of_datasets_keep_their_names():
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [2, 0]})
    dataset = dataset.cast_column("label", datasets.ClassLabel(names=["u", "v", "w"]))
    rows = bound(dataset, "single+class")
    assert (rows["label"][:], rows.features["label"].names) == ([2, 0], ["u", "v", "w"])


@pytest.mark.parametrize(
    ("label", "format_", "expected"),
    [
        ([True, False, True], "pairs+binary", [1, 0, 1]),
        ([1.0, 0.0, 1.0], "pairs+binary", [1, 0, 1]),
        ([2.0, 0.0, 1.0], "pairs+class", [2, 0, 1]),
        ([1, 0, 2], "pairs+score", [1.0, 0.0, 2.0]),
    ],
)
def test_labels_are_cast_to_their_kind(label, format_, expected):
    found = bound({**BOTH, "label": label}, format_)["label"][:]
    assert found == expected
    assert {type(v) for v in found} == {type(expected[0])}


def test_selected_and_shuffled_rows(tmp_path):
    datasets.Dataset.from_dict({"anchor": list("abcd"), "positive": list("wxyz")}).save_to_disk(tmp_path)
    before = sorted(tmp_path.iterdir())
    dataset = datasets.load_from_disk(str(tmp_path)).select([3, 0, 2])
    assert bound(dataset, "pairs").to_list() == [
        {"anchor": "d", "positive": "z"},
        {"anchor": "a", "positive": "w"},
        {"anchor": "c", "positive": "y"},
    ]
    assert sorted(tmp_path.iterdir()) == before


VALUES = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.integers(-3, 3),
    st.floats(),
    st.booleans(),
    st.lists(st.one_of(st.none(), st.text(max_size=2)), max_size=2),
    st.lists(st.floats(), max_size=3),
)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_any_data_set_is_taken_or_refused(data):
    from embedloss.data import _table

    rows = data.draw(st.integers(1, 4))
    format_ = data.draw(
        st.sampled_from(
            [
                "pairs",
                "n-tuples",
                "pairs+score",
                "pairs+binary",
                "pairs+class",
                "listwise",
                "n-tuples+scores",
                "texts+embedding",
                "single+class",
            ]
        )
    )
    names = {
        "pairs": ["anchor", "positive"],
        "n-tuples": ["anchor", "positive", "negative"],
        "listwise": ["query", "docs", "grades"],
        "n-tuples+scores": ["query", "positive", "negative", "scores"],
        "texts+embedding": ["texts", "embedding"],
        "single+class": ["text", "label"],
    }
    columns = names.get(format_, ["first", "second", "label"])
    kind = {
        c: data.draw(
            st.sampled_from(
                [
                    VALUES,
                    st.text(max_size=3),
                    st.lists(st.text(max_size=2), max_size=2),
                    st.floats(),
                    st.lists(st.floats(), max_size=2),
                ]
            )
        )
        for c in columns
    }
    table = [{c: data.draw(kind[c]) for c in columns} for _ in range(rows)]
    try:
        bound(datasets.Dataset(_table(table, "generated")), format_)
    except EmbedlossError as error:
        assert error.code in ("E101", "E102", "E103", "E104", "E105", "E106")  # noqa: PT017
