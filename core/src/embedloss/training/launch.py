"""Start a run on several processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from embedloss.errors import EmbedlossError
from embedloss.training.config import RunConfig


def launch(config: RunConfig, processes: int) -> int:
    """Run a configuration on `processes` processes through torch.distributed.run; the same run as with `accelerate launch`.

    Args:
        config: the settings; `batch_size` is that of one process.
        processes: how many, at least 1.

    Returns:
        The exit status: 0 if every process finished.

    Raises:
        EmbedlossError: for mistakes in settings, data or output folder, before any process is started.
    """
    if processes < 1:
        raise EmbedlossError("E401", f"--processes must be at least 1, got {processes}.")
    from embedloss.training.run import prepare

    prepare(config, lambda text: None)  # a mistake is said once, and not by every process
    threads = max((os.cpu_count() or 1) // processes, 1)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(config.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run([*command, "-m", "embedloss_cli", "train", str(file)], env=environment, check=False)
    return 1 if done.returncode else 0
