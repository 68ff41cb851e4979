"""The conformance kit on every loss."""

from embedloss.testing import parametrize_with_checks

LOSSES = [
    "embed-distill",
    "embed_distill('l2')",
    "embed_distill('mse')",
    "mse",
    "score-mse",
    "score_mse(activation_fn='sigmoid', reduction='sum')",
    "margin-mse",
    "margin_mse(similarity_fct='cosine', reduction='sum')",
    "distill-kl-div",
    "distill_kl_div(student_temperature=0.5, teacher_temperature=2)",
]


@parametrize_with_checks(LOSSES)
def test_conformance(case, check):
    check(case)
