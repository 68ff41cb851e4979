"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

COSINE_SIMILARITY = LossSpec(
    name="cosine-similarity",
    row_weights=True,
    recommended=70,
    advice="the cosine becomes the score itself; where a threshold on it was agreed on",
    aliases=("cosine", "cos-sim"),
    field_name="CosineSimilarityLoss",
    target="embedloss_similarity.losses:CosineSimilarityLoss",
    summary="the cosine of two texts should equal their score",
    family="similarity",
    formats=["pairs+score"],
    label_range=(-1.0, 1.0),
    citation="Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084",
    doc="""\
**Formula**

`L = mean over rows of f(T(cos(u_i, v_i)), y_i)`, by default `(cos(u_i, v_i) - y_i)^2`. A zero vector has cosine 0 and gets no
gradient.

**Inputs**

`first`, `second` and a score from -1 to 1. Scores of another range, such as 0 to 5, are refused: no cosine can reach them. Map
them with `--scale-labels`.

**Parameters**

- `loss_fct = "mse"`: f, one of `mse`, `mae`, `huber` (delta 1).
- `cos_score_transformation = "identity"`: T, one of `identity`, `sigmoid`, `tanh`, `relu`. With any but `identity` the range of
  the labels is yours to choose and is not checked.

**When to use it**

When the value of the cosine itself has a meaning, for example because a threshold was agreed on. Where only the ranking of
pairs counts, `cosent` learns faster from the same data.

**Relations**

`cosent` and `angle` use only the order of the scores. `mse` regresses vectors and `score-mse` scores on a teacher's.

**Differences from sentence-transformers**

- Scores outside -1 to 1 are refused unless the cosine is transformed; there, scores of 0 to 5 train in silence.
- Functions are chosen by name, so that a run can be written down and repeated.
- A row of which one vector is zero gets no gradient; there, the zero vector gets one of about 1e8.
- Scores in float64 stay in float64.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("cosine_similarity(loss_fct='huber')")
output = loss(Embeddings.of(first=torch.randn(6, 8), second=torch.randn(6, 8)), torch.rand(6))
print(output.total)
```
""",
)

COSENT = LossSpec(
    name="cosent",
    recommended=90,
    advice="only the order of scores counts, over all pairs of the batch: the standard for graded similarity",
    field_name="CoSENTLoss",
    target="embedloss_similarity.losses:CoSENTLoss",
    summary="pairs with a higher score should be more similar than pairs with a lower one",
    family="similarity",
    formats=["pairs+score"],
    scope="batch",
    citation="Huang et al. 2024, CoSENT: Consistent Sentence Embedding via Similarity Ranking, doi 10.1109/TASLP.2024.3402087",
    doc="""\
**Formula**

`s_i = scale * sim(u_i, v_i)`, `L = log(1 + sum over (i, j) with y_i > y_j of exp(s_j - s_i))`: one value for the whole batch,
all processes included, not a mean. It is computed in O(B log B) time and O(B) memory, and without sorting where there are two
different labels.

**Inputs**

`first`, `second` and a score: any finite real number, 0/1 as well. Only the order counts; equal scores make no pair. A batch in
which all scores are equal gives 0, no gradient, and the metric `active` 0 instead of 1.

**Parameters**

- `scale = 20.0`: positive; an inverse temperature.
- `similarity_fct = "cosine"`: or `dot`, `euclidean`, `manhattan` (negated distances).

**When to use it**

The first choice for graded similarity (STS), and for 0/1 pairs whose scores need no fixed threshold. The more different scores
a batch holds, the more it learns.

**Relations**

`angle` is this with another similarity. `cosine-similarity` fits the values of the scores and `contrastive` a margin.

**Differences from sentence-transformers**

- A NaN among the scores is refused; there, it takes some place in the order and the loss stays finite.
- Across processes, pairs are compared with those of all processes, so that W processes train as one does on the joint batch.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("cosent(scale=20)")
output = loss(Embeddings.of(first=torch.randn(6, 8), second=torch.randn(6, 8)), torch.tensor([5, 0, 3.2, 3.2, 1, 4]))
print(output.total)
```
""",
)

ANGLE = LossSpec(
    name="angle",
    recommended=85,
    advice="as cosent, also where cosines saturate",
    aliases=("aoe",),
    field_name="AnglELoss",
    target="embedloss_similarity.losses:AnglELoss",
    summary="CoSENT on a similarity in complex space that does not saturate as the cosine does",
    family="similarity",
    formats=["pairs+score", "triplets", "n-tuples"],
    scope="batch",
    deviations={
        "learns": "on triplets |Re + Im| of a complex product grows, not the cosine: opposite vectors are alike as well"
    },
    citation="Li and Li 2024, AoE: Angle-optimized Embeddings for Semantic Textual Similarity, arXiv 2309.12871",
    doc="""\
**Formula**

`L = log(1 + sum over (i, j) with y_i > y_j of exp(s_j - s_i))` as in `cosent`, with `s_i = scale * sim(u_i, v_i)`. Of the
unit vectors `x = [a; b]` and `y = [c; d]` the first half is read as real and the second as imaginary part (an odd dimension
gets a zero):

`sim(x, y) = |sum(a c + b d) + sum(b c - a d)|`, from 0 to the square root of 2.

Two equal vectors have similarity 1, which is not the maximum, so they still get a gradient; and `sim(x, y)` differs from
`sim(y, x)`. Both belong to the published method. The paper's equation 3 prints the difference the other way round; this is the
form of the authors' code, the only one that trains.

**Inputs**

- `pairs+score`: `first`, `second` and any finite score.
- `triplets`, `n-tuples`: no label; every (anchor, positive) of the batch should be more similar than every (anchor, negative)
  of the batch. The number of negatives may differ from row to row.

The batch is that of all processes. Without a pair to order, the loss is 0 and the metric `active` is 0.

**Parameters**

- `scale = 20.0`: positive; an inverse temperature.

**When to use it**

For graded similarity, usually beside an in-batch loss as the authors do: `mnrl() + angle()` on triplets.

**Relations**

`cosent` is the same with the cosine.

**Differences from sentence-transformers**

- A NaN among the scores is refused; there, it takes some place in the order and the loss stays finite.
- Triplets and n-tuples take no label; there, a label y stands for y at the positive and 1 - y at the negatives.
- Rows may have different numbers of negatives, and across processes pairs are compared with those of all processes.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("angle()")
anchor, positive, negative = torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 2, 8)
print(loss(Embeddings.of(anchor=anchor, positive=positive, negative=negative)).total)
```
""",
)

SPECS: list[LossSpec] = [COSINE_SIMILARITY, COSENT, ANGLE]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
