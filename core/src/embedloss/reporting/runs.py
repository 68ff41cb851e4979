"""A run folder as plain data. Imports neither torch nor transformers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from embedloss.errors import EmbedlossError

METRICS_FILE, RESULTS_FILE, CONFIG_FILE = "metrics.jsonl", "results.json", "run.yaml"
MANIFEST_FILE, NEIGHBOURS_FILE = "manifest.json", "neighbours.json"
# What the log holds beside the terms of the loss and its metrics.
FIXED = {"step", "epoch", "loss", "grad_norm", "learning_rate", "total_flos", "train_loss"}

Points = list[tuple[float, float]]


@dataclass
class Run:
    """What one run left behind; what a file does not say is empty.

    Args:
        folder: where it is.
        name: of the folder, made different from other runs' by the caller.
        config: settings.
        entries: of the log, in order.
        before, after: metrics on the evaluation data.
        best: step, metric and value of the checkpoint that was kept.
        steps, seconds: length.
        terms: names of the terms of the loss.
        primary: main metric.
        versions: package -> version.
        neighbours: "before" and "after" -> nearest texts of some queries.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    steps: int = 0
    seconds: float = 0.0
    terms: list[str] = field(default_factory=list)
    primary: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    neighbours: dict[str, Any] = field(default_factory=dict)

    def series(self, name: str) -> Points:
        """(step, value) of one logged number; what is not finite is left out."""
        found = [(float(e["step"]), e[name]) for e in self.entries if isinstance(e.get(name), (int, float))]
        return [(step, float(value)) for step, value in found if math.isfinite(value)]

    def evaluations(self) -> list[str]:
        """Names of the metrics in the log that are no counts."""
        names = dict.fromkeys(k for e in self.entries for k in e if k.startswith("eval_"))
        return [n for n in names if not all(is_count(n, value) for _, value in self.series(n))]

    def term_names(self) -> list[str]:
        """The terms of a sum, or nothing for a loss of one part."""
        logged = {k for e in self.entries for k in e}
        named = [n for n in self.terms if n in logged and n != "loss"]
        return named or sorted(n for n in logged - FIXED if n.endswith("/loss"))


def is_count(name: str, value: float) -> bool:
    """Whether a metric only counts (queries, documents) and is the same before and after."""
    if name.rpartition("/")[2].removeprefix("eval_") in ("queries", "documents"):
        return True
    return value > 1 and float(value).is_integer() and "@" not in name


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; a half-written last line is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def read_run(folder: str | Path) -> Run:
    """Read a run folder, finished or not; E406 if it is none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise EmbedlossError("E406", f"run folder '{folder}' does not exist.")
    if not (path / METRICS_FILE).is_file() and not (path / RESULTS_FILE).is_file():
        inside = sorted(p.parent.name for p in path.glob(f"*/{METRICS_FILE}"))
        hint = f" It holds runs: {', '.join(inside[:6])}." if inside else " Give the --out folder of `embedloss train`."
        raise EmbedlossError("E406", f"'{folder}' is no run: it holds neither {METRICS_FILE} nor {RESULTS_FILE}.{hint}")
    run = Run(path, path.resolve().name)
    try:
        if (path / METRICS_FILE).is_file():
            run.entries = [e for e in read_entries(path / METRICS_FILE) if isinstance(e, dict) and "step" in e]
        if (path / CONFIG_FILE).is_file():
            run.config = dict(yaml.safe_load((path / CONFIG_FILE).read_text(encoding="utf-8")) or {})
        results = _json(path / RESULTS_FILE)
        for key in ("before", "after", "best", "steps", "seconds", "terms", "primary"):
            if results.get(key):
                setattr(run, key, results[key])
        run.versions = dict(_json(path / MANIFEST_FILE).get("versions") or {})
        run.neighbours = _json(path / NEIGHBOURS_FILE)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as exception:
        raise EmbedlossError("E406", f"a file of the run '{folder}' is damaged: {exception}") from exception
    return run


def _json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds no object")
    return found
