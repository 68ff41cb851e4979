"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

GLOBAL_ORTHOGONAL_REGULARIZATION = LossSpec(
    name="global-orthogonal-regularization",
    aliases=("gor",),
    field_name="GlobalOrthogonalRegularizationLoss",
    target="embedloss_regularization.losses:GlobalOrthogonalRegularizationLoss",
    summary="unrelated texts should be as orthogonal as random directions; added to another loss",
    family="regularization",
    any_format=True,
    scope="batch",
    example="mnrl() + 0.1 * gor()",
    deviations={"candidate_order": "every place in a list is a column of its own, as for a loss with as many negative columns"},
    citation="Zhang et al. 2017, Learning Spread-out Local Feature Descriptors, arXiv 1708.06320",
    doc="""\
**Formula**

For each column of texts, over all ordered pairs of different rows, M1 is the mean similarity and M2 the mean squared
similarity:

- `gor_mean = mean_weight * agg over columns of M1^2`
- `gor_second_moment = second_moment_weight * agg over columns of max(0, M2 - 1 / D)`

and `L` is their sum. Random directions in D dimensions have M1 = 0 and M2 = 1 / D. A batch with more rows than dimensions goes
through a D x D matrix: O(B D^2) time, no B x B matrix.

**Inputs**

The texts of any format; labels are not used. A role with several texts a row counts as one column for each place: all first
negatives, all second ones, and so on. The rows are those of all processes. A single row gives 0 and the metric `active` 0.

**Parameters**

- `similarity_fct = "cosine"`: or `dot`, `euclidean`, `manhattan` (negated distances, without the fast form).
- `mean_weight = 1.0`, `second_moment_weight = 1.0`: None or 0 leaves the term out; not both.
- `aggregation = "mean"`: or `sum`. EmbeddingGemma uses `gor(mean_weight=0, aggregation="sum")`.

**When to use it**

Beside a main loss, when embeddings crowd into a cone, when they will be quantised, or when approximate search must work well.
Alone it pushes everything apart and learns nothing. Keep its weight small, and watch its two terms.

**Relations**

In-batch losses such as `mnrl` spread embeddings as well; this adds an explicit measure that also holds within each column.

**Differences from sentence-transformers**

- It is added to any loss with `+`, on the same embeddings, instead of a class for every combination or a second pass.
- Zero vectors get no gradient; there, one of about 1e10 if only some are zero.
- Across processes the mean runs over the rows of all of them.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("gor(aggregation='sum')")
output = loss(Embeddings.of(anchor=torch.randn(64, 8), positive=torch.randn(64, 8)))
print(output.terms)  # gor_mean, gor_second_moment
```
""",
)

SPECS: list[LossSpec] = [GLOBAL_ORTHOGONAL_REGULARIZATION]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
