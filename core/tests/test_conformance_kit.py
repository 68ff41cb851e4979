"""The conformance kit as a plugin author meets it: on a loss that is not installed, without pytest and with it."""

import pytest
import torch

from embedloss import EmbedlossError, LossSpec, create_loss, list_losses
from embedloss.loss import Loss, Modifier
from embedloss.testing import CHECKS, Case, NotApplicable, Report, all_checks, check_loss, parametrize_with_checks, run_check
from embedloss.testing.case import run


class Near(Loss):
    spec = LossSpec(
        name="kit-near",
        target=f"{__name__}:Near",
        summary="anchors near positives",
        family="tests",
        formats=["pairs"],
        citation="none, made for this test",
    )

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def compute(self, emb, labels):
        difference = emb.own("anchor") - emb.own("positive")
        return difference.abs().pow(self.power).sum() * emb.world_size / emb.pool_size


class Twice(Modifier):
    spec = LossSpec(
        name="kit-twice",
        target=f"{__name__}:Twice",
        summary="two times a loss",
        family="tests",
        modifier=True,
        example="kit_twice(not_installed_anywhere(scale=3))",
        citation="none, made for this test",
    )

    def compute(self, emb, labels):
        return 2 * self.loss(emb, labels).total


class Forgetful(Near):
    spec = LossSpec(
        name="kit-forgetful",
        target=f"{__name__}:Forgetful",
        summary="one-sided",
        family="tests",
        formats=["pairs"],
        citation="none",
    )

    def compute(self, emb, labels):
        return (emb.own("anchor") - emb.own("positive").detach()).pow(2).mean()


def test_a_spec_that_is_not_installed_passes_and_leaves_no_trace():
    before = [spec.name for spec in list_losses()]
    report = check_loss(Near.spec, processes=True)
    assert report.ok, report
    assert [spec.name for spec in list_losses()] == before
    assert report["check_row-order"].status == "passed"
    assert report["labels_matter"].status == "not applicable"
    assert {r.check for r in report.results} == set(CHECKS) - {"mask"}
    assert str(report).startswith("kit-near: conforms\n")


def test_objects_expressions_and_sums():
    assert check_loss(Near(power=4.0)).raise_if_failed().loss == "kit-near"
    report = check_loss(0.5 * Near() + Near(power=4.0))
    assert report.ok, report
    assert report["target"].status == "not applicable"
    assert check_loss(Near() + 0.5 * Forgetful(), checks=["every_role"]).ok  # the other term reaches the role


def test_a_modifier_whose_inner_loss_is_not_installed():
    report = check_loss(Twice.spec)
    assert report.ok, report
    assert Case(Twice.spec).original.loss.spec.name == "kit-pull"


def test_a_wrong_loss_is_reported_with_the_format():
    report = check_loss(Forgetful.spec)
    assert not report.ok
    assert report["every_role"].message == "[pairs] no gradient reaches positive"
    assert "every_role" in [r.check for r in report.failures]
    assert report.to_json()["ok"] is False
    with pytest.raises(AssertionError, match="kit-forgetful: 2 checks failed"):
        report.raise_if_failed()


def test_expected_failures_need_a_reason_and_must_fail():
    report = check_loss(Forgetful(), checks=["every-role"], expected_failures={"check_every_role": "one side is frozen"})
    assert report.ok
    assert report["every_role"].status == "expected failure"
    assert "one side is frozen" in report["every_role"].message
    unexpected = check_loss(Near(), checks=["every_role"], expected_failures={"every_role": "no reason at all"})
    assert not unexpected.ok
    assert unexpected["every_role"].status == "unexpected pass"
    with pytest.raises(ValueError, match="there is no check 'speed'"):
        check_loss(Near(), expected_failures={"speed": "slow"})
    with pytest.raises(ValueError, match="say why"):
        check_loss(Near(), expected_failures={"nan": " "})


def test_deviations_of_the_spec_count():
    class Deviating(Forgetful):
        spec = LossSpec(
            name="kit-deviating",
            target=f"{__name__}:Forgetful",
            summary="one-sided",
            family="tests",
            formats=["pairs"],
            citation="none",
            deviations={"every_role": "one side is frozen"},
        )

    assert check_loss(Deviating(), checks=["every_role"]).ok


def test_a_loss_that_cannot_be_made():
    spec = LossSpec(name="kit-gone", target="no_such_module:Gone", summary="gone", family="tests", formats=["pairs"])
    report = check_loss(spec)
    assert [r.check for r in report.failures] == ["target"]
    assert "no_such_module" in report.failures[0].message
    with pytest.raises(EmbedlossError):
        create_loss("kit_gone")


def test_the_pytest_decorator():
    @parametrize_with_checks(
        [Near.spec, Forgetful.spec], expected_failures={"kit-forgetful": {"every_role": "one side is frozen"}}
    )
    def test_conformance(case, check):
        check(case)

    mark = test_conformance.pytestmark[0]
    assert mark.args[0] == ["case", "check"]
    by_id = {parameter.id: parameter for parameter in mark.args[1]}
    assert len(by_id) == 2 * len(all_checks(Near.spec))
    case, check = by_id["kit-near-row_order"].values
    test_conformance(case, check)
    assert not by_id["kit-near-row_order"].marks
    expected = by_id["kit-forgetful-every_role"]
    assert expected.marks[0].name == "xfail"
    assert expected.marks[0].kwargs == {"reason": "one side is frozen", "strict": True}
    with pytest.raises(AssertionError):
        test_conformance(*expected.values)
    with pytest.raises(pytest.skip.Exception):
        test_conformance(*by_id["kit-near-labels_matter"].values)


def test_the_decorator_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="kit-unknown"):
        parametrize_with_checks([Near.spec], expected_failures={"kit-unknown": {"nan": "reason"}})
    with pytest.raises(TypeError, match="case, check"):
        parametrize_with_checks([Near.spec])(lambda: None)


def test_every_check_says_in_one_line_what_it_wants():
    for check in CHECKS.values():
        assert len(check.summary) > 20
        assert check.group
        assert check.name == check.function.__name__.removeprefix("check_")


def test_not_applicable_on_every_format_is_not_a_pass():
    with pytest.raises(NotApplicable):
        run_check(CHECKS["labels_matter"], Case(Near.spec))


@pytest.mark.parametrize(
    "name", ["n-tuples+scores", "listwise", "texts+embedding", "pairs+class", "single+class", "n-tuples+margins"]
)
def test_rows_of_a_batch_stay_together(name):
    """Selecting rows one by one and putting them together again is the batch."""
    from embedloss.formats import get_format

    case = Case(Near.spec)
    case.format = get_format(name)
    batch = case.batch()
    order = [3, 0, 7, 5, 1, 2, 6, 4]
    mixed = batch.select(order)
    back = mixed.select([order.index(i) for i in range(8)])
    for role, value in batch.texts.items():
        assert torch.equal(back.texts[role], value)
        for row, source in enumerate(order):
            assert torch.equal(mixed.texts[role][mixed.places(row, role)], value[batch.places(source, role)])
    assert back.counts == batch.counts
    assert torch.equal(back.labels, batch.labels)
    one = batch.select([1])
    if name == "listwise":
        assert one.labels.shape[1] == one.counts["docs"][0] < batch.labels.shape[1]
        assert torch.equal(one.labels[0], batch.labels[1, : one.labels.shape[1]])


def test_runs_tell_what_has_no_gradient():
    case = Case(Forgetful.spec)
    result = run(case.loss(), case.batch())
    assert result.missing == ("positive",)
    assert result.norm() > 0
    assert not result.gradients["positive"].any()


def test_reports_without_results():
    assert Report("nothing").ok


# -- tiny models ---------------------------------------------------------------------------------------------------------------
def test_tiny_bert_is_the_same_every_time_and_knows_its_words(tmp_path):
    from transformers import AutoModel, AutoTokenizer

    from embedloss.testing.models import SENTENCES, tiny_bert

    state = torch.get_rng_state()
    folders = [tiny_bert(tmp_path / name, layers=1, hidden=16) for name in ("a", "b")]
    assert torch.equal(state, torch.get_rng_state())
    models = [AutoModel.from_pretrained(folder) for folder in folders]
    for (name, one), (_, other) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert torch.equal(one, other), name
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    ids = [tokenizer(text)["input_ids"] for text in SENTENCES]
    assert all(tokenizer.unk_token_id not in row for row in ids)
    assert len({tuple(row) for row in ids}) == len(SENTENCES)
    assert ids[0][0] == tokenizer.cls_token_id
    assert ids[0][-1] == tokenizer.sep_token_id
    models[0].eval()
    with torch.no_grad():
        vectors = models[0](**tokenizer(list(SENTENCES), padding=True, return_tensors="pt")).last_hidden_state[:, 0]
    assert torch.pdist(vectors).min() > 1e-3
    with pytest.raises(ValueError, match="pooling"):
        tiny_bert(tmp_path / "c", pooling="sum")


def test_tiny_cross_encoder_scores_pairs(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from embedloss.testing.models import SENTENCES, tiny_cross_encoder

    folder = tiny_cross_encoder(tmp_path / "c", layers=1, hidden=16, num_labels=3)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer([SENTENCES[0]], [SENTENCES[1]], return_tensors="pt")
    assert inputs["token_type_ids"].unique().tolist() == [0, 1]
    assert model.eval()(**inputs).logits.shape == (1, 3)
