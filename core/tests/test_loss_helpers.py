"""What losses share: keeping parameters, refusing rows, means over processes, known gradients, late linear maps."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, Loss, LossSpec
from embedloss.autograd import with_gradients
from embedloss.linear import LinearLoss, project
from embedloss.loss import share_of
from embedloss.validate import callable_or, count, must_be, named, not_negative, one_of, optional, positive, share, whole

SPEC = LossSpec(name="helped", target="nowhere:Helped", summary="a loss", family="core", formats=["pairs"])


class Helped(LinearLoss):
    spec = SPEC
    linear_name = "head"

    def __init__(self, scale=20.0, similarity_fct="cosine", margin=1.0, extra=None):
        super().__init__()
        self.keep(locals(), margin=not_negative)

    def compute(self, emb, labels):
        return emb.joint_mean(emb.own("anchor").sum(1))


def test_keep_stores_what_the_checks_return():
    loss = Helped(similarity_fct="pairwise_cos_sim", margin=0, extra=[1])
    assert (loss.scale, loss.similarity_fct, loss.margin, loss.extra) == (20.0, "cosine", 0, [1])
    assert not {"self", "__class__"} & set(vars(loss))
    assert loss.to_expression() == "helped(margin=0, extra=[1])"
    for wrong, word in (({"scale": 0}, "scale must be above 0"), ({"margin": -1}, "margin must be at least 0")):
        with pytest.raises(ValueError, match=word):
            Helped(**wrong)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (positive, [1, 0.5], [0, -1, math.inf, math.nan, True]),
        (not_negative, [0, 2.5], [-1, math.inf, math.nan]),
        (share, [0, 0.5, 1], [-0.1, 1.1, math.nan]),
        (whole, [0, -3], [1.0, True, "1"]),
        (count, [1, 7], [0, 1.0, True]),
        (optional(count), [None, 1], [0]),
        (one_of("a", "b"), ["a"], ["c", None]),
        (callable_or(one_of("a")), ["a", len], ["b"]),
        (named({"mse": 1}, {"MSELoss": "mse"}), ["mse"], ["mae"]),
        (must_be("even", lambda value: value % 2 == 0), [2], [3]),
    ],
)
def test_checks(check, right, wrong):
    assert [check("x", value) for value in right] == right
    for value in wrong:
        with pytest.raises(ValueError, match="x must be"):
            check("x", value)


def test_the_first_bad_row_is_refused():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.5], [6.0, 5.0]])
    loss = Helped()
    loss.refuse(values > 9, "never", values)
    loss.refuse(values[:0] > 0, "never")
    with pytest.raises(EmbedlossError, match=r"E105.*'helped' has 4\.5 in row 2$"):
        loss.refuse(values > 4, "has {value} in row {row}", values)
    with pytest.raises(EmbedlossError, match=r"row 3 has 3000000$"):
        loss.refuse(torch.tensor([False, False, True]), "row {row} has {value}", torch.tensor([1, 2, 3_000_000]))


def test_known_gradients():
    x, y = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    value = with_gradients(torch.tensor(2.0), (x, torch.tensor([1.0, 2, 3])), (y, torch.tensor([4.0, 5])))
    (value * 3).backward()
    assert value.item() == 2
    assert x.grad.tolist() == [3, 6, 9]
    assert y.grad.tolist() == [12, 15]


def test_known_gradients_are_nobody_elses():
    x, known = torch.randn(3, requires_grad=True), torch.tensor([1.0, 2, 3])
    value = with_gradients(torch.tensor(2.0), (x, known))
    value.backward(retain_graph=True)
    x.grad.add_(10)  # as clipping and accumulation do
    value.backward(retain_graph=True)
    assert x.grad.tolist() == [12, 14, 16]
    x.grad = None
    value.backward()
    x.grad.mul_(5)
    assert x.grad.tolist() == [5, 10, 15]
    assert known.tolist() == [1, 2, 3]


def test_means_and_shares():
    x = torch.tensor([[1.0, 2], [3, 4]])
    assert Helped()(Embeddings.of(anchor=x, positive=x)).total == 5
    assert Embeddings.of(anchor=x, negative=[x, x[:1]]).joint_mean(torch.tensor([1.0, 2, 6]), "negative") == 3
    assert Embeddings.of(anchor=x[:0]).joint_mean(x[:0].sum(1)) == 0
    assert [share_of(torch.tensor(flags)).item() for flags in ([True, False], [[True, True]], [])] == [0.5, 1, 0]


def test_a_late_linear_map_is_seeded_saved_and_restored(tmp_path):
    torch.manual_seed(3)
    loss, before = Helped(), torch.get_rng_state()
    assert loss.linear is None
    assert not loss.state_dict()
    made = loss.make_linear(4, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(Helped().make_linear(4, 2).weight, made.weight)
    fresh = Helped()
    fresh.load_state_dict(loss.state_dict())
    loss.save_linear(tmp_path / "new" / "head.safetensors")
    (read := Helped()).load_linear(tmp_path / "new" / "head.safetensors", 2)
    assert torch.equal(fresh.head.weight, made.weight)
    assert torch.equal(read.head.bias, made.bias)
    with pytest.raises(ValueError, match="maps 4 to 2 dimensions, this loss any to 3"):
        Helped().load_linear(tmp_path / "new" / "head.safetensors", 3)
    with pytest.raises(ValueError, match="no head to save"):
        Helped().save_linear(tmp_path / "none")


def test_a_cut_map_uses_the_first_inputs_of_each_part():
    weight, bias, x = torch.randn(3, 8), torch.randn(3), torch.randn(5, 6)
    used = weight[:2, [0, 1, 2, 4, 5, 6]]
    torch.testing.assert_close(project(x, weight, bias, width=2, parts=2), x @ used.T + bias[:2])


def test_plugin_packages_import_no_torch_before_a_class_is_used():
    code = (
        "import sys; from embedloss.lazy import exports; find = exports('embedloss.loss', ['Loss'])\n"
        "assert 'torch' not in sys.modules; assert find('Loss').__name__ == 'Loss'; assert 'torch' in sys.modules\n"
        "try: find('Nothing')\n"
        "except AttributeError as error: assert str(error) == \"module 'embedloss' has no attribute 'Nothing'\"\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_base_loss_takes_no_unknown_parameters():
    class Bare(Loss):
        spec = SPEC

    with pytest.raises(TypeError):
        Bare(scale=1)
