"""A gathered loss under FSDP2 on two gloo processes: the gradients of one process on all rows.

Sharded layer by layer, every process makes one chunk, since each pass collects the weights anew; sharded as a whole, the chunks
are many and recomputed.
"""

import subprocess
import sys

import pytest
import torch

ROWS, SHARES = 7, [4, 3]


def gradients(folder, begin, end, sharded=""):
    """Parameter name -> whole gradient, of these rows' share of the loss."""
    from embedloss import TrainingStep, create_loss, load_encoder
    from embedloss.collate import Collator
    from embedloss.testing.models import SENTENCES

    encoder = load_encoder(folder)
    step = (
        TrainingStep(encoder, create_loss("mnrl(scale=5) + 0.1 * gor()"), gather=bool(sharded), recompute=sharded == "whole")
        .double()
        .eval()
    )
    if sharded:
        from torch.distributed.fsdp import fully_shard

        for layer in encoder.model.encoder.layer if sharded == "layers" else ():
            fully_shard(layer)
        fully_shard(step)
    rows = [{"anchor": SENTENCES[i], "positive": SENTENCES[-1 - i]} for i in range(begin, end)]
    batch = Collator(encoder.processor, step.loss, "pairs", 30 if sharded == "whole" else 10**6)(rows)
    assert (len(batch["chunks"]) > 2) == (sharded == "whole")
    step(batch)["loss"].backward()
    found = {k: p.grad for k, p in step.named_parameters() if p.grad is not None}
    return {k: (g.full_tensor() if sharded else g).clone() for k, g in found.items()}


def process(folder, rank, sharded):
    import torch.distributed as dist

    from embedloss.distributed import leave

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = gradients(f"{folder}/model", sum(SHARES[:rank]), sum(SHARES[: rank + 1]), sharded)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    leave()


@pytest.mark.parametrize("sharded", ["layers", "whole"])
def test_sharded_weights_get_the_joint_gradient(sharded, tmp_path):
    from embedloss.testing.models import tiny_bert

    tiny_bert(tmp_path / "model", hidden=16)
    wanted = gradients(str(tmp_path / "model"), 0, ROWS)
    command = [sys.executable, __file__, str(tmp_path)]
    started = [subprocess.Popen([*command, str(rank), sharded], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        said = [one.communicate(timeout=120)[1] for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], "\n".join(said)
    found = torch.load(tmp_path / "found.pt")
    assert set(found) == set(wanted)
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-4
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < 1e-10 * max(1.0, largest), name


if __name__ == "__main__":
    process(sys.argv[1], int(sys.argv[2]), sys.argv[3])
