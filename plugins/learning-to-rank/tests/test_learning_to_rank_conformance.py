"""The conformance kit on every loss and scheme."""

from embedloss.testing import parametrize_with_checks

LOSSES = [
    "lambda-loss",
    "lambda_loss('none', k=1)",
    "lambda_loss('ndcg-loss1')",
    "lambda_loss('ndcg-loss2', k=2, reduction_log='natural')",
    "lambda_loss('lambdarank', sigma=2)",
    "rank-net",
    "list-net",
    "list_net(activation_fn='sigmoid')",
    "list-mle",
    "list_mle(respect_input_order=False)",
    "plist-mle",
    "plist_mle(respect_input_order=False)",
    "adr-mse",
]
EXPECTED = {
    "lambda-loss('ndcg-loss1')": {
        "nothing_to_learn": "its definition pairs each document with itself: a constant without gradient, as everywhere else"
    }
}


@parametrize_with_checks(LOSSES, EXPECTED)
def test_conformance(case, check):
    check(case)
