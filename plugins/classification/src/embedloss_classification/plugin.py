"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

SOFTMAX = LossSpec(
    name="softmax",
    recommended=60,
    advice="a classifier over both embeddings and their difference; learns the classes, while triplets of the "
    "same data usually give better search",
    aliases=("sbert-softmax",),
    field_name="SoftmaxLoss",
    target="embedloss_classification.losses:SoftmaxLoss",
    summary="a classifier on the embeddings of two texts, trained with the encoder",
    family="classification",
    formats=["pairs+class"],
    citation="Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084",
    doc="""\
**Formula**

`logits_i = W [u_i; v_i; |u_i - v_i|; u_i * v_i] + b` with the parts that were chosen;
`L = mean over rows of CE(logits_i, y_i)`.

**Inputs**

`first`, `second` and a class id from 0 to `num_labels - 1`, or, for ready tensors, one probability a class, (rows, num_labels).
Rows with the id -100 do not count; without other rows the loss is 0. Metrics: `accuracy` of the batch, and `active`, the share
of rows that count.

**Parameters**

- `embedding_dimension = None`: by default the model's. `sentence_embedding_dimension` is an older name of it.
- `num_labels = None`: by default the number of classes in the training data; on ready tensors the highest id of the first
  batch plus one.
- `concatenation_sent_rep = True` (u and v), `concatenation_sent_difference = True` (|u - v|),
  `concatenation_sent_multiplication = False` (u * v): at least one.
- `loss_fct = "cross-entropy"`: or `multi-margin`, a hinge of margin 1 averaged over the classes.
- `label_smoothing = 0.0`: share of the target that is spread evenly over all classes.

**When to use it**

For pairs with classes, such as entailment, neutral and contradiction, where nothing better can be made of the labels. Triplets
made from the same data with an in-batch loss usually give better embeddings.

**Relations**

The classifier is a weight of the loss: it is optimised, clipped, saved, resumed and synchronised with the encoder, and is not
needed to use the embeddings. `loss.predict(embeddings)` gives the logits. Within `matryoshka`, a prefix of d dimensions uses
the classifier's first d columns of each part. `cross-entropy` is the same for cross-encoders, without a classifier of its own.

**Differences from sentence-transformers**

- Sizes are found from the model and the data.
- A batch in which every row is ignored gives 0, there NaN; a class id that is too large is refused by row.
- The classifier's start depends on the seed alone, not on what was drawn before.
- Truncated embeddings can be classified.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("softmax(8, num_labels=3, label_smoothing=0.1)")
output = loss(Embeddings.of(first=torch.randn(6, 8), second=torch.randn(6, 8)), torch.tensor([0, 1, 2, 2, 1, 0]))
print(output.total, output.metrics["accuracy"])
```
""",
)

BINARY_CROSS_ENTROPY = LossSpec(
    name="binary-cross-entropy",
    recommended=60,
    advice="the standard of rerankers: the probability that two texts belong together",
    aliases=("bce",),
    field_name="BinaryCrossEntropyLoss",
    target="embedloss_classification.losses:BinaryCrossEntropyLoss",
    summary="a score of two texts as the log-odds that they belong together",
    family="classification",
    formats=["pairs+binary", "pairs+score"],
    models=("bi-encoder", "cross-encoder"),
    consumes="scores",
    label_range=(0.0, 1.0),
    citation="Nogueira and Cho 2019, Passage Re-ranking with BERT, arXiv 1901.04085",
    doc="""\
**Formula**

`z = act(s)`, `L = mean over rows of -[pos_weight * y * log sigma(z) + (1 - y) * log(1 - sigma(z))]`, computed from z without
overflow. s is a cross-encoder's only output, or `scale * sim(u, v)` of a bi-encoder's embeddings.

**Inputs**

`first`, `second` and 0, 1 or anything between; other labels are refused.

**Parameters**

- `activation_fn = "identity"`: act; `sigmoid`, `tanh` or `relu`. A sigmoid here is a second one and weakens gradients.
- `pos_weight = None`: weight of the positive part; as a rule the number of negatives for each positive.
- `reduction = "mean"`: or `sum`.
- `similarity_fct = "cosine"`, `scale = 1.0`: for a bi-encoder only. With the cosine, log-odds lie between -scale and scale.
  With scale 1 every pair keeps a gradient; a larger one fits extreme labels closer and squeezes the cosines of graded pairs
  towards 0.

**When to use it**

The first choice for cross-encoders on judged pairs or on mined hard negatives. On a bi-encoder it draws the line between good
and bad at similarity 0, which suits data where negatives are truly unrelated.

**Relations**

`cross-entropy` is for more than two classes. `contrastive` and `cosent` train bi-encoders on the same data. Losses of the
`learning-to-rank` family compare the documents of one query with each other.

**Differences from sentence-transformers**

- Labels outside 0 to 1 are refused; there, a label of 5 gives a negative loss.
- It trains bi-encoders, too.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss
from embedloss.embeddings import Scores

loss = create_loss("bce(pos_weight=4)")
labels = torch.tensor([1, 0, 0.5, 0])
print(loss(Scores.of(torch.randn(4)), labels).total)
print(loss(Embeddings.of(first=torch.randn(4, 8), second=torch.randn(4, 8)), labels).total)
```
""",
)

CROSS_ENTROPY = LossSpec(
    name="cross-entropy",
    recommended=80,
    advice="a cross-encoder with an output for each class",
    aliases=("ce",),
    field_name="CrossEntropyLoss",
    target="embedloss_classification.losses:CrossEntropyLoss",
    summary="the outputs of a cross-encoder as logits of classes",
    family="classification",
    formats=["pairs+class"],
    models=("cross-encoder",),
    consumes="scores",
    citation="Devlin et al. 2019, BERT, arXiv 1810.04805",
    doc="""\
**Formula**

`L = mean over rows of -log softmax(act(s_i))_{y_i}` with the logits s_i (classes,) of row i.

**Inputs**

`first`, `second` and a class id, or, for ready tensors, one probability a class. The model needs one output for each class: a
class id that is not below the number of outputs is refused, naming both. Metrics: `accuracy` of the batch and `active`, the
share of rows that count.

**Parameters**

- `activation_fn = "identity"`: act; `sigmoid`, `tanh` or `relu`.
- `weight = None`: one number a class; the mean is then over the weights of the rows' classes.
- `ignore_index = -100`: class id of rows that do not count; without other rows the loss is 0.
- `reduction = "mean"`: or `sum`.
- `label_smoothing = 0.0`: share of the target that is spread evenly over all classes.

**When to use it**

For cross-encoders that tell classes apart, such as entailment, neutral and contradiction.

**Relations**

`binary-cross-entropy` is for two classes and graded labels. `softmax` is the same on a bi-encoder's embeddings.

**Differences from sentence-transformers**

- A batch in which every row is ignored gives 0, there NaN.
- A model with one output is refused; there, the loss is 0 whatever the labels are.
- Real numbers as class ids are refused by name.

**Example**

```python
import torch
from embedloss import create_loss
from embedloss.embeddings import Scores

loss = create_loss("cross_entropy(label_smoothing=0.1)")
output = loss(Scores.of(torch.randn(4, 3)), torch.tensor([0, 2, 1, 1]))
print(output.total, output.metrics["accuracy"])
```
""",
)

SPECS: list[LossSpec] = [SOFTMAX, BINARY_CROSS_ENTROPY, CROSS_ENTROPY]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
