"""Every table of docs/benchmarks.md: both sides in turn, each run in a fresh process, medians over rounds.

    python tests/bench/run.py [--quick] [--data ../shared/data] [--work FOLDER] [--sections training,alone] [--write FILE]

The folder keeps what is measured: the same call goes on where it stopped. Without the shared data sets the docstring pairs of
`embedloss demo-data` are used.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import subprocess
import tempfile
from pathlib import Path

import torch
import training

SECTIONS = {
    "training": "Training",
    "parts": "What each part brings",
    "bf16": "bfloat16",
    "alone": "Losses alone",
    "recompute_memory": "Memory of recomputation",
    "static": "Static encoders, and what prepares data",
    "inference": "Encoding and search",
    "scale": "Gathering",
    "startup": "Start-up",
}
SLOW = "parts", "bf16", "recompute_memory"  # not in a quick run


def section(name: str, options: argparse.Namespace, work: Path, store: training.Store) -> str:
    """Measure one section."""
    if hasattr(training, name):
        return str(getattr(training, name)(options, work, store))
    more = {"data": str(options.data)} if name == "inference" else {}
    return str(importlib.import_module(name).section(options.quick, **more))


def machine(cuda: bool) -> str:
    """What the times of a section belong to; results of two processors are not for comparing."""
    if cuda:
        return torch.cuda.get_device_name()
    return f"{training.cores()} cores of {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"


HEADER = """# Benchmarks

Beside sentence-transformers 6.2.0, in turn, every run in a fresh process; medians of {rounds} round(s) or more where a table
names no number. Peak memory is the largest resident size of the process (on a GPU, the most that torch had allocated). Speed
above 1 and memory below 1 are in our favour. Absolute times are the machine's own, and two runs of one command differ by up to
15%. GPU tables (`--cuda`: float32 and bfloat16, up to 65,536 rows a step) have not been run. Memory of LambdaLoss by the length
of its lists: [rerankers](results/rerankers.md); the formulas of gathering and recomputation: [scaling](scaling.md).

```text
{command}
```

"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one round of a part of the table, under five minutes")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, help="keeps what is measured; by default nothing is kept")
    parser.add_argument("--sections", help="with commas; '': only write what the folder keeps")
    parser.add_argument("--only", default="", help="training: names of data sets, with commas")
    parser.add_argument("--kinds", default="", help="training: 'plain 64' and the like, with commas")
    parser.add_argument("--cuda", action="store_true", help="training on a GPU: its batches, and no other section")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        store = training.Store(work / "measured.json")
        if options.cuda:
            chosen = ["training"]
        elif options.sections is not None:
            chosen = list(filter(None, options.sections.split(",")))
        else:
            chosen = [name for name in SECTIONS if not (options.quick and name in SLOW)]
        for name in chosen:
            made = section(name, options, work, store)
            store.pages[name] = f"## {SECTIONS[name]}\n\nMeasured at commit {commit}, {machine(options.cuda)}.\n\n{made}"
            store.save()
            print(store.pages[name], flush=True)
        pages = [store.pages[name] for name in SECTIONS if name in store.pages]
    if options.write:
        command = "python tests/bench/run.py" + (" --quick" if options.quick else "")
        header = HEADER.format(rounds=options.rounds, command=command)
        options.write.write_text(header + "\n\n".join(pages) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
