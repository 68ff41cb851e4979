"""How long `embedloss check` takes, and how much memory: files of pairs with 100,000 and 1,000,000 rows.

python tests/bench/check_scale.py --work FOLDER [--rows 1000000]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path


def write(path: Path, rows: int) -> None:
    rng = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    with path.open("w") as file:
        for i in range(rows):
            pair = {"query": f"{i} " + " ".join(rng.choices(words, k=8)), "answer": " ".join(rng.choices(words, k=20))}
            file.write(json.dumps(pair) + "\n")


def measured(*words: str) -> tuple[float, int]:
    """Seconds, and the most memory in MB."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "embedloss_cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"exit {status}")
    return time.perf_counter() - begin, usage.ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    for rows in (options.rows // 10, options.rows):
        lines, columns = work / f"{rows}.jsonl", work / f"{rows}.parquet"
        if not columns.is_file():
            write(lines, rows)
            subprocess.run(
                [sys.executable, "-m", "embedloss_cli", "convert", str(lines), "--to", "pairs", "--out", str(columns)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        for file in (lines, columns):
            seconds, memory = measured("check", str(file), "--loss", "mnrl")
            size = file.stat().st_size / 2**20
            print(f"{rows:>9,} rows  {file.suffix:<8}  {size:5.0f} MB  {seconds:5.1f} s  {memory:,} MB peak", flush=True)


if __name__ == "__main__":
    main()
