import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedloss.errors import EmbedlossError
from embedloss.expression import Call, Sum, literal, parse

NAMES = st.sampled_from(["mnrl", "gist-embed", "batch_all_triplet", "mse", "matryoshka", "a1"])
NUMBERS = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6, allow_nan=False))
SCALARS = st.one_of(NUMBERS, st.booleans(), st.none(), st.text(max_size=8))
LITERALS = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)), max_leaves=5
)
KEYS = st.sampled_from(["scale", "margin", "dims", "similarity_fct"])


def text_of(node):
    """An expression as text, written without the parser's own code."""
    if isinstance(node, Call):
        arguments = [text_of(a) for a in node.args] + [f"{k}={text_of(v)}" for k, v in node.kwargs.items()]
        return f"{node.name}({', '.join(arguments)})"
    if isinstance(node, Sum):
        return " + ".join(f"{literal(weight)} * {text_of(term)}" for weight, term in node.terms)
    return literal(node)


def plain(node):
    """Without columns, so that trees can be compared; numbers that are equal are the same."""
    if isinstance(node, Call):
        return (node.name.replace("-", "_"), tuple(map(plain, node.args)), {k: plain(v) for k, v in node.kwargs.items()})
    if isinstance(node, Sum):
        return tuple((plain(w) if isinstance(w, Call) else float(w), plain(t)) for w, t in node.terms)
    if isinstance(node, (list, tuple)):
        return (type(node), [plain(v) for v in node])
    return node


CALLS = st.recursive(
    st.builds(Call, NAMES, st.just(()), st.dictionaries(KEYS, LITERALS, max_size=3)),
    lambda inner: st.builds(Call, NAMES, st.tuples(inner), st.dictionaries(KEYS, LITERALS, max_size=2)),
    max_leaves=3,
)
SUMS = st.lists(st.tuples(st.floats(0.01, 100).map(lambda x: round(x, 3)), CALLS), min_size=1, max_size=3).map(
    lambda t: Sum(tuple(t))
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(CALLS, SUMS))
def test_what_is_written_is_read_back(node):
    assert plain(parse(text_of(node))) == plain(node)


GRAMMAR = st.lists(
    st.sampled_from(
        [*"()[]{}+-*/,.=:'\"#@ 019", "mnrl", "gor", "0.5", "lambda x: 1", "**", "__import__", "f'{x}'", "\n", "\\", "é", "\0"]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=40), GRAMMAR, st.text(alphabet=string.printable, max_size=30)))
def test_random_text_never_raises_anything_else(text):
    try:
        node = parse(text)
    except EmbedlossError as error:
        assert error.code == "E202"  # noqa: PT017
    else:
        assert isinstance(node, (Call, Sum))


@pytest.mark.parametrize("text", ["(" * 5000, "a(" * 3000, "-" * 5000 + "1", "1" * 6000 + " * mnrl", "a + " * 3000 + "a"])
def test_long_and_deep_text_is_refused_or_read(text):
    try:
        parse(text)
    except EmbedlossError as error:
        assert error.code == "E202"  # noqa: PT017


@pytest.mark.parametrize("text", ["mnrl", "gist-embed", "  mnrl  "])
def test_a_bare_name_is_a_call(text):
    assert parse(text) == Call(text.strip())


def test_hyphens_in_names_are_not_subtractions():
    node = parse("gist-embed(temperature=1e-3, prompt='a-b') + batch-all-triplet(margin=-0.5)")
    assert [term.name for _, term in node.terms] == ["gist_embed", "batch_all_triplet"]
    assert node.terms[0][1].kwargs == {"temperature": 1e-3, "prompt": "a-b"}
    assert node.terms[1][1].kwargs == {"margin": -0.5}


def test_weights_schedules_and_nesting():
    node = parse("0.7 * matryoshka(mnrl(scale=20), dims=[384, 128]) + linear(0, 0.1, steps=100) * gor()")
    (weight, first), (schedule, second) = node.terms
    assert (weight, first.name, second.name) == (0.7, "matryoshka", "gor")
    assert isinstance(schedule, Call)
    assert schedule.args == (0, 0.1)
    assert first.args[0] == Call("mnrl", (), {"scale": 20}, first.args[0].column)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("mnrl(", "was never closed"),
        ("mnrl - gor", "only + and *"),
        ("mnrl / 2", "only + and *"),
        ("mnrl(__import__('os').system('ls'))", "expected the name of a loss"),
        ("mnrl(x for x in y)", "argument must be"),
        ("mnrl(*a)", "* is not allowed"),
        ("mnrl(**a)", "** is not allowed"),
        ("mnrl(scale=1, scale=2)", "given twice"),
        ("2 * 3", "a product needs a loss"),
        ("[mnrl]", "expected the name of a loss"),
        ("mnrl; gor", "cannot be parsed"),
        ("a.b()", "expected the name of a loss"),
        ("mnrl(scale=lambda: 1)", "argument must be"),
    ],
)
def test_a_mistake_is_pointed_at(text, part):
    with pytest.raises(EmbedlossError) as caught:
        parse(text)
    assert caught.value.code == "E202"
    assert part in caught.value.message
    if text:
        lines = caught.value.message.splitlines()
        assert lines[1].strip() == text.strip()
        assert lines[2].strip() == "^"


def test_what_cannot_be_written_is_refused():
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises(EmbedlossError) as caught:
            literal(value)
        assert caught.value.code == "E203"
