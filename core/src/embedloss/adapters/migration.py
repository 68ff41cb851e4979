"""What our losses are called elsewhere: the generated part of docs/migrating.md, from the specs."""

from __future__ import annotations

import re

from embedloss.registry import list_losses
from embedloss.spec import LossSpec

BEGIN, END = "<!-- from the specs: begin -->", "<!-- from the specs: end -->"
_DIFFERENCES = re.compile(r"\*\*Differences from sentence-transformers\*\*\n(.*?)(?=\n\*\*[A-Z][^*\n]*\*\*\n|\Z)", re.DOTALL)


def _specs() -> list[LossSpec]:
    specs = [s for s in list_losses() if s.field_name and s.distribution.startswith("embedloss-")]
    return sorted(specs, key=lambda s: (s.field_name, s.name))


def _example(spec: LossSpec) -> str:
    return spec.example or f"{spec.name.replace('-', '_')}()"


def differences(spec: LossSpec) -> str:
    """What a spec's doc says about its differences from sentence-transformers, Markdown; empty if nothing."""
    found = _DIFFERENCES.search(spec.doc)
    return found.group(1).strip() if found else ""


def losses_table() -> str:
    """One row a loss: its class elsewhere, the expression to type, its short names, the data it takes."""
    rows = ["| class there | expression here | short | model | data |", "| --- | --- | --- | --- | --- |"]
    for spec in _specs():
        data = "any" if spec.any_format else "what the loss inside takes" if spec.modifier else ", ".join(spec.format_names())
        cells = [
            f"`{spec.field_name}`",
            f"[`{_example(spec)}`](losses/{spec.name}.md)",
            ", ".join(f"`{alias}`" for alias in spec.aliases),
            ", ".join(spec.models),
            data,
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def differences_list() -> str:
    """One section a loss that differs on purpose."""
    parts = [f"### {spec.name}\n\n{text}\n" for spec in _specs() if (text := differences(spec))]
    return "\n".join(parts)


def refreshed(page: str) -> str:
    """docs/migrating.md with its generated part made anew; the rest is left as it is."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"\n## Losses\n\n{losses_table()}\n## What differs on purpose\n\n{differences_list()}\n"
    return f"{before}{BEGIN}\n{made}{END}{after}"
