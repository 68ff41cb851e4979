"""The specs of this family. Imports no torch."""

from __future__ import annotations

from typing import Any

from embedloss import LossSpec, hookimpl

_INPUTS = """\
**Inputs**

`listwise`: `query`, `docs` (a list whose length may differ from row to row, and may be empty) and one grade a document, any
finite real number, higher is better. On a cross-encoder s is the logit of (query, document), on a bi-encoder `scale` times the
similarity of their embeddings.
"""

_SHARED = """\
- `activation_fn = "identity"`: applied to the scores; also `"sigmoid"`, `"tanh"`, `"relu"`, None (the same as identity).
- `mini_batch_size = None`: accepted with a warning and without effect. The encoder cuts all pairs into chunks of bounded tokens
  for every loss, and `recompute` bounds the activations, which this parameter never did.
- `similarity_fct = "cosine"`, `scale = 20.0`: the scores of a bi-encoder; not used on a cross-encoder. Cosines lie within
  [-1, 1]; without the factor no list could be separated clearly. With `"dot"` a scale of 1 is usual.
"""

_EMPTY = "- A list without documents does not count. A batch without anything to order gives 0 with gradient 0.\n"


def _ltr(name: str, target: str, parts: dict[str, str], **fields: Any) -> LossSpec:
    doc = (
        f"**Formula**\n\n{parts['formula']}\n{_INPUTS}\n**Parameters**\n\n{parts['parameters']}{_SHARED}\n"
        f"**When to use it**\n\n{parts['when']}\n**Relations**\n\n{parts['relations']}\n"
        f"**Differences from sentence-transformers**\n\n{parts['differences']}\n**Example**\n\n"
        "```python\nimport torch\nfrom embedloss import Embeddings, create_loss\nfrom embedloss.embeddings import Scores\n\n"
        f'loss = create_loss("{parts["example"]}")\n'
        "grades = torch.tensor([[3.0, 1.0, 0.0], [2.0, 0.0, 0.0]])\n"
        "mask = torch.tensor([[True, True, True], [True, True, False]])  # the second query has two documents\n"
        "print(loss(Scores.of(torch.randn(2, 3), mask), grades).total)  # logits of a cross-encoder\n"
        "documents = [torch.randn(3, 8), torch.randn(2, 8)]\n"
        "print(loss(Embeddings.of(query=torch.randn(2, 8), docs=documents), grades).total)  # embeddings\n```\n"
    )
    return LossSpec(
        name=name,
        target=f"embedloss_learning_to_rank.losses:{target}",
        field_name=target,
        family="learning-to-rank",
        formats=["listwise"],
        models=("bi-encoder", "cross-encoder"),
        consumes="scores",
        doc=doc,
        **fields,
    )


LAMBDA = _ltr(
    "lambda-loss",
    "LambdaLoss",
    {
        "formula": """\
The documents of a query are sorted by their scores; i and j are positions 1, 2, ... in this order, `D(r) = log2(1 + r)`,
`G_i = (2^max(y_i, 0) - 1) / max(maxDCG@k, eps)` with the highest DCG@k that the grades allow.

`L = -(1 / n) sum over kept (i, j) of w_ij log_b sigmoid(sigma (s_i - s_j))`

A pair is kept if `y_i > y_j` and i <= k or j <= k; n counts the kept pairs of the whole batch. The weights are constants
for the gradient:

| scheme | w_ij |
| --- | --- |
| `none` | 1 |
| `ndcg-loss1` | `G_i / D(i)`; keeps every ordered pair, a document with itself included (a constant without gradient) |
| `ndcg-loss2` | `abs(1 / D(abs(i - j)) - 1 / D(abs(i - j) + 1)) * abs(G_i - G_j)` |
| `lambdarank` | `abs(1 / D(i) - 1 / D(j)) * abs(G_i - G_j)` |
| `ndcg-loss2++` | `mu * ndcg-loss2 + lambdarank` |
""",
        "parameters": """\
- `weighting_scheme = "ndcg-loss2++"`: one of the table; None is `none`. The class names of the field are accepted as strings.
- `k = None`: only pairs with a document among the k best scores; None: all pairs.
- `sigma = 1.0`: slope of the logistic function.
- `eps = 1e-10`: lowest value of maxDCG, nothing else.
- `reduction_log = "binary"`: base 2; `"natural"`: base e.
- `mu = 10.0`: in `ndcg-loss2++`.
""",
        "when": """\
For graded relevance when NDCG is what counts, and lists have more than a handful of documents. `ndcg-loss2++` and `lambdarank`
look most at the top of the list. Time grows with the square of the list's length, memory does not: pairs are looked at in
blocks of about a million and the gradient is taken with the value.
""",
        "relations": "`rank_net` is `lambda_loss(weighting_scheme='none')`. `list_net` and `list_mle` look at whole lists.\n",
        "differences": _EMPTY
        + """\
- A score that is not finite makes the loss NaN; there a NaN score is replaced by 0 and training goes on.
- Grades above 60 are refused where gains are used: 2^grade overflows float32 from 128 on, and long before that one document
  outweighs all others. Negative grades order pairs and have gain 0, as there.
- Equal scores keep the given order; there their order is undefined, and with it the weights.
- Schemes are strings, and `mu` is a parameter of the loss.
""",
        "example": "lambda_loss(k=10)",
    },
    aliases=("lambdaloss",),
    highest_label=60.0,
    recommended=90,
    advice="optimises nDCG itself, more weight on the top: the standard for graded lists",
    summary="pairs of documents weighted by their effect on NDCG, in five schemes",
    citation="Wang et al. 2018, The LambdaLoss Framework for Ranking Metric Optimization, doi 10.1145/3269206.3271784; "
    "Pobrotyn et al. 2020, Context-Aware Learning to Rank with Self-Attention, arXiv 2005.10084",
)

RANK_NET = _ltr(
    "rank-net",
    "RankNetLoss",
    {
        "formula": """\
`L = mean over pairs with y_i > y_j, of all lists of the batch, of log_b(1 + exp(-sigma (s_i - s_j)))`
""",
        "parameters": """\
- `k = None`: only pairs with a document among the k best scores; None: all pairs.
- `sigma = 1.0`: slope of the logistic function.
- `eps = 1e-10`: no effect.
- `reduction_log = "binary"`: base 2; `"natural"`: base e.
""",
        "when": "When only the order of grades means something, not their distance.\n"
        "Every misordered pair counts the same, wherever it stands.\n",
        "relations": "`lambda_loss` without weights. `cosent` does much the same for pairs of texts with scores.\n",
        "differences": _EMPTY + "- A score that is not finite makes the loss NaN; there a NaN score is replaced by 0.\n",
        "example": "rank_net()",
    },
    aliases=("ranknet",),
    recommended=75,
    advice="every pair of documents of different grades",
    summary="logistic loss of every pair of documents of different grades",
    citation="Burges et al. 2005, Learning to Rank using Gradient Descent, doi 10.1145/1102351.1102363",
)

LIST_NET = _ltr(
    "list-net",
    "ListNetLoss",
    {
        "formula": """\
`L = mean over lists of -sum_i softmax(y)_i log softmax(s)_i`

Its minimum is the entropy of softmax(y), not 0. Grades that are all equal ask for equal scores. A grade of -inf leaves a
document out of the target, while its score still competes.
""",
        "parameters": "",
        "when": "A good first choice for graded lists: one smooth term a list, linear time, no sorting.\n",
        "relations": "`distill_kl_div` is this with a teacher's scores and temperatures, and less the entropy of the target.\n",
        "differences": "- A list without documents does not count; there one of them makes the whole loss NaN.\n",
        "example": "list_net()",
    },
    aliases=("listnet",),
    leaves_out=True,
    recommended=80,
    advice="the whole distribution over the list; cheap, and steady with few grades",
    summary="cross entropy of the softmax of grades and of scores",
    citation="Cao et al. 2007, Learning to Rank: From Pairwise Approach to Listwise Approach, doi 10.1145/1273496.1273513",
)

_ORDER = """\
- `respect_input_order = True`: the documents are given best first and the grades are **not read**. False: they are sorted by
  descending grade, equal grades as given.
"""

_ORDER_WHY = """\
- `respect_input_order` keeps its default, so that a loss made by the same call means the same. It is a trap all the same: with
  documents in any other order the loss trains that order and ignores the grades. `embedloss check` and `embedloss train`
  therefore refuse lists in which a better grade comes later, with their rows, and name the switch; in Python a warning says
  so once.
- Equal grades keep the given order; there the sort is not stable.
- A list without documents does not count; there it counts as 0 in the mean. Lists of one document give 0 that is connected to
  the model; there a fresh leaf.
"""

LIST_MLE = _ltr(
    "list-mle",
    "ListMLELoss",
    {
        "formula": """\
With the documents in the target order pi, best first, N of them:

`L = mean over lists of -sum_r (s_pi(r) - log sum over t >= r of exp(s_pi(t)))`
""",
        "parameters": _ORDER,
        "when": "When the whole order is known, such as a teacher's ranking.\n"
        "With few grades and many ties prefer `list_net` or `lambda_loss`.\n",
        "relations": "`plist_mle` weighs the first positions more. Linear time by a reversed cumulative log-sum-exp.\n",
        "differences": _ORDER_WHY,
        "example": "list_mle(respect_input_order=False)",
    },
    aliases=("listmle",),
    recommended=45,
    advice="only the order of the list counts",
    summary="likelihood of the right order of the documents",
    citation="Xia et al. 2008, Listwise Approach to Learning to Rank: Theory and Algorithm, doi 10.1145/1390156.1390306",
)

PLIST_MLE = _ltr(
    "plist-mle",
    "PListMLELoss",
    {
        "formula": """\
With the documents in the target order pi, best first, N of them:

`L = mean over lists of -sum_r c_r (s_pi(r) - log sum over t >= r of exp(s_pi(t)))`, `c_r = w_r / (sum of w + 1e-10)`

The default weights are `w_r = 2^(N - r) - 1`, r = 1, ..., N: 15, 7, 3, 1, 0 for five documents.
""",
        "parameters": """\
- `lambda_weight = "default"`: the weights above; None: c_r = 1, which is `list_mle`; in Python also a function that gets the
  float ranks 1, 2, ..., N of the longest list and returns as many weights (shorter lists use the first of them), or
  `PListMLELambdaWeight(rank_discount_fn=function)`. A loss with a function cannot be written as an expression.
"""
        + _ORDER,
        "when": "As `list_mle`, when the first positions matter most.\n"
        "About half of the default weight is on the first document.\n",
        "relations": "`list_mle` is this without weights.\n",
        "differences": _ORDER_WHY
        + """\
- A function of ranks gets ranks. There it gets the boolean mask, so that every weight is the same and lists shorter than the
  longest weigh 0.
""",
        "example": "plist_mle(respect_input_order=False)",
    },
    aliases=("plistmle", "p-list-mle"),
    recommended=50,
    advice="as list-mle, more weight on the top",
    summary="likelihood of the right order with more weight on its first positions",
    citation="Lan et al. 2014, Position-Aware ListMLE: A Sequential Learning Process for Ranking, UAI, pp. 449-458",
)

ADR_MSE = _ltr(
    "adr-mse",
    "ADRMSELoss",
    {
        "formula": """\
`r_i = #{y_j > y_i} + (#{y_j = y_i} + 1) / 2`, `rhat_i = 1 + sum over j != i of sigmoid(alpha (s_j - s_i))`

`L = mean over all documents of the batch of (r_i - rhat_i)^2 / log2(1 + r_i)`
""",
        "parameters": "- `alpha = 1.0`: slope of the approximate ranks; the higher, the closer to a step.\n",
        "when": """\
To distil the order of a strong reranker over long lists. Long lists weigh more: their ranks differ more and they have more
documents. Memory does not grow with the square of the length.
""",
        "relations": "`list_mle` and `rank_net` learn from the same order; this one compares ranks themselves.\n",
        "differences": _EMPTY,
        "example": "adr_mse()",
    },
    aliases=("adrmse",),
    recommended=55,
    advice="the order of a strong reranker over long lists",
    summary="squared error of differentiable ranks, discounted by rank",
    citation="Schlatt et al. 2024, Rank-DistiLLM, arXiv 2405.07920, doi 10.1007/978-3-031-88714-7_31",
)

SPECS: list[LossSpec] = [LAMBDA, RANK_NET, LIST_NET, LIST_MLE, PLIST_MLE, ADR_MSE]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
