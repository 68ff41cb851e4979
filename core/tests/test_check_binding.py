import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedloss.binding import LABEL_COLUMN_KINDS, bind, fitting, losses_for
from embedloss.errors import EmbedlossError
from embedloss.formats import FORMATS, LABELS, ROLE_COLUMNS

KINDS = {"t": "text", "T": "texts", "i": "int", "f": "float", "F": "floats", "V": "vectors", "e": "empty", "o": "other"}
RANKING = ["pairs", "triplets", "n-tuples"]


def columns(text):
    return {name: KINDS[kind] for name, kind in (part.split(":") for part in text.split())}


def bound(text, formats, **more):
    return bind(columns(text), [FORMATS[f] for f in formats], loss_name="some-loss", **more)


@pytest.mark.parametrize(
    ("data", "formats", "expected"),
    [
        ("query:t positive:t", RANKING, "pairs anchor=query positive=positive"),
        ("positive:t query:t", RANKING, "pairs anchor=query positive=positive"),  # never by position
        ("answer:t question:t", RANKING, "pairs anchor=question positive=answer"),
        ("Query:t Positive:t", RANKING, "pairs anchor=Query positive=Positive"),
        ("query:t positive:t negative:t", RANKING, "triplets anchor=query positive=positive negative=negative"),
        ("query:t positive:t negative:t", ["pairs", "n-tuples"], "n-tuples anchor=query positive=positive negative=negative"),
        ("query:t positive:t negative:T", RANKING, "n-tuples anchor=query positive=positive negative=negative"),
        ("query:t positive:t hard_negatives:T", RANKING, "n-tuples anchor=query positive=positive negative=hard_negatives"),
        (
            "negative_10:t query:t positive:t negative2:t negative_1:t",
            RANKING,
            "n-tuples anchor=query positive=positive negative=negative_1+negative2+negative_10",
        ),
        ("sentence1:t sentence2:t score:f", ["pairs+score"], "pairs+score first=sentence1 second=sentence2 label=score"),
        (
            "sentence1:t sentence2:t score:f",
            ["pairs+score", "triplets"],
            "pairs+score first=sentence1 second=sentence2 label=score",
        ),
        ("sentence1:t sentence2:t", ["pairs", "pairs+score"], "pairs anchor=sentence1 positive=sentence2"),
        (
            "sentence1:t sentence2:t score:f",
            ["pairs", "pairs+score"],
            "pairs+score first=sentence1 second=sentence2 label=score",
        ),
        (
            "sentence1:t sentence2:t label:i",
            ["pairs+score", "pairs+binary"],
            "pairs+binary first=sentence1 second=sentence2 label=label",
        ),
        (
            "sentence1:t sentence2:t label:f",
            ["pairs+binary", "pairs+score"],
            "pairs+score first=sentence1 second=sentence2 label=label",
        ),
        ("query:t code:t label:i", ["pairs+binary"], "pairs+binary first=query second=code label=label"),
        ("text:t label:t", ["single+class"], "single+class text=text label=label"),
        ("text:t label:i", ["single", "single+class"], "single+class text=text label=label"),
        ("query:t docs:T scores:F query_id:t doc_ids:T", ["listwise"], "listwise query=query docs=docs label=scores"),
        (
            "query:t positive:t negative:t margin:f",
            ["triplets+margin", "n-tuples+scores"],
            "triplets+margin query=query positive=positive negative=negative label=margin",
        ),
        (
            "query:t positive:t negative:T scores:F",
            ["n-tuples+margins", "n-tuples+scores"],
            "n-tuples+scores query=query positive=positive negative=negative label=scores",
        ),
        (
            "query:t positive:t negative:T margins:F",
            ["n-tuples+margins", "n-tuples+scores"],
            "n-tuples+margins query=query positive=positive negative=negative label=margins",
        ),
        (
            "english:t translation:t embedding:F",
            ["text+embedding", "texts+embedding"],
            "texts+embedding texts=english+translation label=embedding",
        ),
        ("text:t embedding:F", ["text+embedding", "texts+embedding"], "text+embedding text=text label=embedding"),
        ("texts:T embedding:V", ["text+embedding", "texts+embedding"], "texts+embedding texts=texts label=embedding"),
        ("noisy:t clean:t", ["source-target", "single"], "source-target damaged=noisy original=clean"),
    ],
)
def test_columns_are_bound_by_name(data, formats, expected):
    binding = bound(data, formats)
    parts = [f"{role}={'+'.join(names)}" for role, names in binding.columns.items()]
    assert " ".join([binding.format.name, *parts, *([f"label={binding.label}"] if binding.label else [])]) == expected


def test_the_order_of_columns_does_not_matter():
    names = ["id:t", "query:t", "positive:t", "negative_1:t", "negative_2:t"]
    found = set()
    for seed in range(20):
        random.Random(seed).shuffle(names)
        found.add(bound(" ".join(names), RANKING).describe())
    assert len(found) == 1


def test_mapping_wins_and_metadata_needs_no_drop():
    data = "id:t query:t positive:t qtype:t focus:t source:t"
    binding = bound(data, RANKING, mapping={"anchor": "query", "positive": "positive"})
    assert (binding.columns, binding.id) == ({"anchor": ("query",), "positive": ("positive",)}, "id")
    assert binding.unused == ("qtype", "focus", "source")
    assert binding.describe().splitlines() == [
        "format pairs",
        "  anchor   <- query",
        "  positive <- positive",
        "  id       <- id",
        "  not used: qtype, focus, source",
    ]
    for missing in ({}, {"anchor": "query"}):  # only one role typed: the other columns may be meant
        with pytest.raises(EmbedlossError, match="E102"):
            bound(data, RANKING, mapping=missing)


@pytest.mark.parametrize("extra", ["negative:t", "answer:t", "score:f", "label:i", "labels:F", "text:t", "negative_1:t"])
def test_a_known_name_is_never_left_out_silently(extra):
    mapping = {"anchor": "q", "positive": "p"}
    with pytest.raises(EmbedlossError) as caught:
        bound(f"q:t p:t {extra}", ["pairs"], mapping=mapping)
    assert extra.split(":")[0] in caught.value.message
    assert "--drop" in caught.value.message
    assert bound(f"q:t p:t {extra}", ["pairs"], mapping=mapping, drop=[extra.split(":")[0]]).format.name == "pairs"


def test_columns_that_are_no_text_and_no_label_are_listed_only():
    binding = bound("query:t positive:t length:i meta:o empty:e idx:i source_id:t", RANKING)
    assert binding.unused == ("length", "meta", "empty", "idx", "source_id")


def test_several_columns_mapped_to_a_list_role():
    binding = bound("q:t p:t h1:t h2:t", RANKING, mapping={"anchor": "q", "positive": "p", "negative": "h2,h1"})
    assert (binding.format.name, binding.columns["negative"]) == ("n-tuples", ("h2", "h1"))
    assert bound("a,b:t p:t", ["pairs"], mapping={"anchor": "a,b", "positive": "p"}).columns["anchor"] == ("a,b",)


def test_one_column_for_two_roles_when_asked():
    binding = bound("text:t", ["pairs"], mapping={"anchor": "text", "positive": "text"})
    assert binding.columns == {"anchor": ("text",), "positive": ("text",)}


def test_labels_are_mapped_by_any_of_their_names():
    for key in ("label", "score"):
        assert bound("sentence1:t sentence2:t target:f", ["pairs+score"], mapping={key: "target"}).label == "target"


@pytest.mark.parametrize(
    "data",
    ["text:t", "a_text:t text:t", "sentence1:t sentence2:t score:f", "query:t docs:T grades:F", "english:t translation:t"],
)
def test_losses_for_any_format_take_any_texts(data):
    mapping = {"anchor": "a_text", "positive": "text"} if "a_text" in data else {}
    binding = bind(columns(data), [], loss_name="gor", any_format=True, mapping=mapping)
    used = {c for names in binding.columns.values() for c in names}
    assert used == {name for name, kind in columns(data).items() if kind in ("text", "texts")}
    assert binding.label_ignored == (binding.label is not None)


@pytest.mark.parametrize(
    ("data", "formats", "more", "code", "parts"),
    [
        ("q:t a:t", RANKING, {}, "E102", ["no column for: anchor, positive", "--map anchor=q --map positive=a"]),
        ("q:t a:t", RANKING, {"mapping": {"anchor": "q"}}, "E102", ["--map anchor=q --map positive=a"]),
        ("query:t positive:t note:t", ["pairs"], {}, "E102", ["'note' would not be used", "--drop note"]),
        ("query:t positive:t note:t", RANKING, {}, "E102", ["--map negative=note", "--drop note"]),
        ("query:t positive:t label:i", RANKING, {}, "E101", ["it takes no label ('label' would be unused)", "--drop label"]),
        ("question:t answer:t score:f", ["triplets"], {}, "E101", ["missing: negative", "no label ('score' would be unused)"]),
        ("text:t label:t label_id:i", ["single+class"], {}, "E101", ["it takes one label ('label_id' would be unused)"]),
        ("anchor:t positive:t", ["pairs+score"], {}, "E101", ["missing: a label"]),
        ("first:t second:t target:f", ["pairs+score"], {}, "E102", ["--map label=target"]),
        ("text:t", RANKING, {}, "E101", ["missing: anchor, positive (found 1 text column)"]),
        ("query:i positive:t", RANKING, {}, "E104", ["'anchor' <- 'query': found whole number (row 1 on)"]),
        ("query:o positive:t", RANKING, {}, "E104", ["found neither text nor number (row 1 on)"]),
        ("query:t positive:T", RANKING, {}, "E104", ["found list of texts", "one text a row needed"]),
        ("query:t positive:e", RANKING, {}, "E104", ["the column holds no values"]),
        ("first:t second:t score:t", ["pairs+score"], {}, "E105", ["label <- 'score': found text", "a real number needed"]),
        ("query:t docs:T grades:f", ["listwise"], {}, "E105", ["label <- 'grades': found number"]),
        ("query:t positive:t", RANKING, {"mapping": {"anchor": "qurey"}}, "E102", ["no column 'qurey'. Did you mean 'query'?"]),
        ("query:t positive:t", RANKING, {"mapping": {"anchr": "query"}}, "E102", ["Did you mean --map anchor=query?"]),
        ("query:t positive:t", RANKING, {"mapping": {"query": "query"}}, "E102", ["Did you mean --map anchor=query?"]),
        ("query:t positive:t", RANKING, {"mapping": {"label": "query"}}, "E102", ["It takes no label."]),
        ("query:t positive:t x:t", RANKING, {"mapping": {"anchor": "query,x"}}, "E102", ["'anchor' takes one column"]),
        ("query:t positive:t", RANKING, {"drop": ["focus"]}, "E102", ["--drop focus: there is no column 'focus'"]),
        ("query:t positive:t", RANKING, {"drop": ["querry"]}, "E102", ["Did you mean 'query'?"]),
        ("x:t y:t", ["single", "pairs"], {"mapping": {"text": "x", "anchor": "y"}}, "E102", ["no format of 'some-loss'"]),
        ("my$text:t positive:t", ["pairs"], {}, "E102", ["--map anchor='my$text'"]),
        ("", RANKING, {}, "E101", ["data: none"]),
    ],
)
def test_refusals_say_what_to_type(data, formats, more, code, parts):
    with pytest.raises(EmbedlossError) as caught:
        bound(data, formats, **more)
    assert caught.value.code == code
    for part in parts:
        assert part in caught.value.message


def test_the_command_of_a_refusal_works():
    with pytest.raises(EmbedlossError) as caught:
        bound("q:t a:t note:t", ["pairs"])
    line = next(line for line in caught.value.message.splitlines() if "--map" in line)
    assert line.endswith("--map anchor=q --map positive=a")
    assert bound("q:t a:t note:t", ["pairs"], mapping={"anchor": "q", "positive": "a"}).unused == ("note",)


def test_what_fits_without_a_loss():
    assert next(b.format.name for b in fitting(columns("sentence1:t sentence2:t score:f"))) == "pairs+score"
    assert [b.format.name for b in fitting(columns("query:t positive:t negative:T"))] == ["n-tuples"]
    with pytest.raises(EmbedlossError, match="E102: the columns make none of the known formats"):
        fitting(columns("a:t b:t"))
    with pytest.raises(EmbedlossError, match="there is no column 'c'"):
        fitting(columns("a:t b:t"), drop=["c"])


def test_other_losses_are_named_only_where_they_fit():
    assert losses_for(columns("a:t b:i")) == []
    assert len(losses_for(columns("first:t second:t label:i"), limit=2)) <= 3


NAMES = sorted(
    {n for names in ROLE_COLUMNS.values() for n in names}
    | {n for k in LABELS.values() for n in k.columns}
    | {"x", "y", "id", "negative_1"}
)
TABLES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(sorted(KINDS.values())), max_size=6)


@settings(max_examples=500, deadline=None)
@given(
    TABLES,
    st.lists(st.sampled_from(sorted(FORMATS)), min_size=1, max_size=4, unique=True),
    st.dictionaries(st.sampled_from([*ROLE_COLUMNS, "label", "id", "nope"]), st.sampled_from(NAMES), max_size=2),
    st.lists(st.sampled_from(NAMES), max_size=2),
    st.booleans(),
)
def test_any_columns_are_bound_soundly_or_refused(table, formats, mapping, drop, any_format):
    try:
        binding = bind(table, [FORMATS[f] for f in formats], loss_name="x", mapping=mapping, drop=drop, any_format=any_format)
    except EmbedlossError as error:
        assert error.code in ("E101", "E102", "E104", "E105")  # noqa: PT017
        return
    assert tuple(binding.columns) == binding.format.roles
    used = {c for names in binding.columns.values() for c in names}
    for role, names in binding.columns.items():
        allowed = {"text", "texts"} if role in binding.format.lists else {"text"}
        assert {table[c] for c in names} <= allowed
        if role in mapping:
            assert names == (mapping[role],)
    assert (binding.format.label is None) == (binding.label is None)
    if binding.label:
        assert table[binding.label] in LABEL_COLUMN_KINDS[binding.format.label]
    everything = used | {c for c in (binding.label, binding.id) if c} | set(binding.unused)
    assert everything == set(table)
    assert not used & set(drop)
    assert all(
        role in binding.columns or role in ("id", *sum((k.columns for k in LABELS.values()), ()), *LABELS) for role in mapping
    )
