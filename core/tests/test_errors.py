import ast
import re
from pathlib import Path

import pytest

import embedloss
from embedloss.errors import EXPLANATIONS, EmbedlossError

SOURCES = sorted(Path(embedloss.__file__).parent.rglob("*.py"))


def test_code_and_message():
    error = EmbedlossError("E101", "no.")
    assert (error.code, error.message, str(error)) == ("E101", "no.", "E101: no.")


def test_a_code_needs_an_explanation():
    with pytest.raises(KeyError):
        EmbedlossError("E999", "no.")


@pytest.mark.parametrize("code", EXPLANATIONS)
def test_explanations_say_something(code):
    assert re.fullmatch(r"E[1-9]\d\d", code)
    assert len(EXPLANATIONS[code].title) > 10
    assert len(EXPLANATIONS[code].text) > 40


def test_every_code_in_the_sources_is_explained():
    found = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "EmbedlossError" and node.args:
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    found.add(code.value)
    assert len(found) > 10
    assert found <= set(EXPLANATIONS)
