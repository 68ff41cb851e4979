"""Random data sets, most of them broken in some way: they are taken or refused, and nothing else happens.

EMBEDLOSS_FUZZ=5000 runs that many, drawn anew, in place of the few hundred of every day.
"""

import csv
import io
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedloss.chunks import Chunks
from embedloss.convert import CONVERSIONS, convert_file
from embedloss.errors import EXPLANATIONS, EmbedlossError
from embedloss.examine import examine
from embedloss.formats import FORMATS, LABELS, ROLE_COLUMNS
from embedloss.registry import list_losses
from embedloss.suggest import suggest
from embedloss.training.config import RunConfig
from embedloss.training.run import prepare

EVERY_DAY = 300
EXAMPLES = int(os.environ.get("EMBEDLOSS_FUZZ", "0"))
SPECS = [spec for spec in list_losses() if not spec.modifier]

TEXTS = [
    "a",
    "b",
    "a",
    "some words",
    "",
    " ",
    "\t\n",
    "7",
    "0.5",
    "[1, 2]",
    "nan",
    "null",
    "é",
    "\u3042",
    "\U0001f600",
    "\0",
    "x" * 300,
]
ODD = ["\ud83d", "\ufeff", '"', "'", ",", ";", "\r\n", "\\"]
NUMBERS = [0, 1, 2, -1, 3, 0.5, -0.5, 5.0, 1e308, 2**40]
ODD_NUMBERS = [float("nan"), float("inf"), float("-inf"), 2**70, -(2**63), True, 1e-320]


def text(rng):
    return (
        rng.choice(ODD) if rng.random() < 0.03 else rng.choice(TEXTS) + (f" {rng.randrange(9)}" if rng.random() < 0.7 else "")
    )


def number(rng):
    return rng.choice(ODD_NUMBERS) if rng.random() < 0.03 else rng.choice(NUMBERS[: rng.choice((2, 3, 5, 10))])


def several(rng, item, most=4):
    return [item(rng) for _ in range(rng.choice((0, 1, 2, 2, 2, 3, most)))]


KINDS = {
    "text": text,
    "texts": lambda rng: several(rng, text),
    "two texts": lambda rng: [text(rng), text(rng)],
    "class": lambda rng: rng.choice(("entailment", "neutral", "contradiction", "x")),
    "binary": lambda rng: rng.randrange(2),
    "number": number,
    "numbers": lambda rng: several(rng, number),
    "two numbers": lambda rng: [number(rng), number(rng)],
    "three numbers": lambda rng: [number(rng) for _ in range(3)],
    "vectors": lambda rng: [[number(rng), number(rng)] for _ in range(2)],
    "object": lambda rng: {"x": text(rng)},
    "null": lambda rng: None,
    "anything": lambda rng: KINDS[rng.choice([k for k in KINDS if k != "anything"])](rng),
}
USUAL = {"class": ("class", "binary"), "binary": ("binary",), "score": ("number",), "margin": ("number",)}
NAMES = sorted({name for names in ROLE_COLUMNS.values() for name in names})
LABEL_NAMES = sorted({name for kind in LABELS.values() for name in kind.columns})
OTHERS = [
    "id",
    "query_id",
    "doc_id",
    "x",
    "",
    " ",
    "Anchor",
    "negative_1",
    "negative_2",
    "target",
    "label_id",
    "title",
    "a,b",
    "é",
]


def columns_of(rng):
    """Name -> kind: those of a format, with some changes."""
    fmt = FORMATS[rng.choice(list(FORMATS))]
    found = {}
    for role in fmt.roles:
        name = role if rng.random() < 0.6 else rng.choice(ROLE_COLUMNS.get(role, (role,)))
        found[name] = rng.choice(("texts", "two texts", "text")) if role in fmt.lists else "text"
    if fmt.label:
        name = rng.choice(LABELS[fmt.label].columns)
        found[name] = rng.choice(USUAL.get(fmt.label, ("numbers", "two numbers", "three numbers", "vectors")))
    while rng.random() < 0.3:
        found[rng.choice(rng.choice((NAMES, LABEL_NAMES, OTHERS)))] = rng.choice(list(KINDS))
    while len(found) > 1 and rng.random() < 0.15:
        del found[rng.choice(list(found))]
    for name in found:
        if rng.random() < 0.08:
            found[name] = rng.choice(list(KINDS))
    return fmt.name, found


def rows_of(rng, columns):
    rows = []
    holes = rng.choice((0, 0, 0, 0.1, 0.5))
    for _ in range(rng.choice((1, 2, 3, 6, 12, 25))):
        row = {name: KINDS[kind](rng) for name, kind in columns.items()}
        for name in list(row):
            if rng.random() < holes:
                if rng.random() < 0.5:
                    row[name] = rng.choice((None, "", [], 7, "x", [None], [["x"]]))
                else:
                    del row[name]
        rows.append(row)
    return rows


def file_of(rng):
    """Suffix and bytes of a data set."""
    name, columns = columns_of(rng)
    rows = rows_of(rng, columns)
    suffix = rng.choice((".jsonl", ".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".parquet"))
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == ".parquet":
        try:
            sink = io.BytesIO()
            pyarrow.parquet.write_table(pa.table({n: pa.array([row.get(n) for row in rows]) for n in names}), sink)
            content = sink.getvalue()
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
            suffix = ".jsonl"  # such columns cannot be written
    if suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows]
        content = "\n".join([*lines, *[""] * rng.randrange(2)]).encode("utf-8", "surrogatepass")
    elif suffix == ".json":
        document = rng.choice((rows, {"data": rows}, {n: [row.get(n) for row in rows] for n in names}))
        content = json.dumps(document).encode()
    elif suffix in (".csv", ".tsv"):
        out = io.StringIO()
        writer = csv.writer(out, delimiter="," if suffix == ".csv" else "\t")
        writer.writerow(names)
        for row in rows:
            cells = (row.get(n) for n in names)
            writer.writerow(["" if c is None else c if isinstance(c, str) else json.dumps(c) for c in cells])
        content = out.getvalue().encode("utf-8", "surrogatepass")
    if rng.random() < 0.08:  # damaged
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        content = bytes(damaged[: rng.randrange(len(damaged) + 1)] if rng.random() < 0.3 else damaged)
    return suffix, content, names, name


def survives(action):
    """Whether it was accepted; an `EmbedlossError` with words is as good."""
    try:
        action()
        return True
    except EmbedlossError as error:
        refusal = error
    assert refusal.code in EXPLANATIONS
    assert refusal.message.strip()
    return False


def mapping_of(rng, names):
    if not names or rng.random() < 0.7:
        return {}
    roles = [*ROLE_COLUMNS, "label", "id", "x"]
    return {rng.choice(roles): rng.choice(rng.choice((names, OTHERS)))} if rng.random() < 0.9 else {"negative": ",".join(names)}


accepted = {"check": 0, "check a loss": 0, "suggest": 0, "convert": 0, "train": 0}


@settings(
    max_examples=EXAMPLES or EVERY_DAY,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**48))
def check_one(folder, seed):
    rng = random.Random(seed)
    suffix, content, names, name = file_of(rng)
    file = folder / f"data{suffix}"
    file.write_bytes(content)
    mapping, drop = mapping_of(rng, names), rng.sample(names, 1) if names and rng.random() < 0.1 else []
    options = {"mapping": mapping, "drop": drop}
    takers = [spec for spec in SPECS if name in spec.format_names()]
    spec = rng.choice(takers if takers and rng.random() < 0.7 else SPECS)
    more = {"scale_labels": rng.random() < 0.2, "sampler": rng.choice(("auto", "random", "no-duplicates"))}
    whole = str(file)
    accepted["check"] += survives(
        lambda: examine(whole, eval_data=rng.choice((None, whole)), **options).report.raise_if_faulty()
    )
    accepted["check a loss"] += survives(lambda: examine(whole, spec=spec, **options, **more).report.raise_if_faulty())
    accepted["suggest"] += survives(lambda: suggest(whole, **options))
    conversion = rng.choice([c for c in CONVERSIONS if not any(p.kind in (object, dict) for p in c.parameters)])
    given = {p.name: rng.choice((0.5, 1.0)) for p in conversion.parameters if p.name in ("threshold", "below")}
    if rng.random() < 0.2:
        given["seed"] = rng.randrange(9)
    out = folder / f"out{rng.choice(('.jsonl', '.parquet'))}"
    done = survives(lambda: convert_file(whole, conversion.target, out, **options, **given))
    accepted["convert"] += done
    if done:  # what comes out can be read again
        assert len(list(Chunks(str(out)))) > 0
    config = RunConfig(
        model="static(dimension=8)",
        data=whole,
        loss=spec.example or spec.name,
        out=str(folder / "run"),
        map=mapping,
        drop=drop,
        **more,
    )
    accepted["train"] += survives(lambda: prepare(config, say=lambda words: None))


def test_any_data_is_taken_or_refused(tmp_path):
    check_one(tmp_path)
    # Neither everything nor nothing gets through, or the test would say little.
    total = EXAMPLES or EVERY_DAY
    assert all(total * 0.01 < count < total * 0.9 for count in accepted.values()), accepted
