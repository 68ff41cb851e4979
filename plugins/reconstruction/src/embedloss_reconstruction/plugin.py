"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

DENOISING_AUTO_ENCODER = LossSpec(
    name="denoising-auto-encoder",
    recommended=85,
    advice="texts alone: the embedding must hold what a damaged text has lost",
    aliases=("tsdae", "dae"),
    field_name="DenoisingAutoEncoderLoss",
    target="embedloss_reconstruction.losses:DenoisingAutoEncoderLoss",
    summary="rebuild a text from the embedding of a damaged version of it",
    family="reconstruction",
    formats=["source-target", "single"],
    citation="Wang, Reimers, Gurevych 2021, TSDAE, arXiv 2104.06979",
    doc="""\
**Formula**

With e the embedding of the damaged text and t_1 .. t_n the tokens of the original one,

`L = mean over all target tokens of the batch of -log p(t_{k+1} | t_1 .. t_k, e)`

p is a causal decoder whose cross-attention has a memory of length one, e. All it learns about the text it must learn from e.

**Inputs**

`source-target` (damaged, original), or `single`: then each text is damaged on the way to the model, anew in every epoch, by
draws that depend on the run's seed. No labels. Only the damaged text is encoded.

**Parameters**

- `decoder_name_or_path = None`: the decoder, for `tie_encoder_decoder=False`. Its hidden size must be the embeddings'. If its
  vocabulary differs from the encoder's, originals are turned into text and tokenised again.
- `tie_encoder_decoder = True`: the decoder uses the encoder's own parameters, and adds cross-attention and a head. Tied
  parameters are optimised once and saved with the encoder.
- `noise = "delete"`: how single texts are damaged; `"none"` leaves them as they are; in Python also a function of a text and
  a `random.Random`.
- `del_ratio = 0.6`: chance of each word (what white space separates) to be deleted; one word always stays.

**When to use it**

When there are texts of the domain and neither pairs nor labels; often before training on a few labelled ones.

**Relations**

`contrastive_tension`, and `mnrl` on twice the same text, also need only texts. This one needs a transformer whose type has a
decoder form with cross-attention (BERT, RoBERTa, ELECTRA, XLM-RoBERTa, ...); static embeddings are refused (E302). Inside
`matryoshka` the decoder reads a short embedding through the first columns of its cross-attention.

**Differences from sentence-transformers**

- The decoder is tied to the encoder's weights as they are in memory. There, the encoder is tied to a decoder that is loaded
  anew, which silently undoes any change since loading.
- Padding is what the mask says, so a model whose padding token is its end token learns to end.
- A target of one token gives 0 instead of an error.
- Words are deleted with probability `del_ratio`; the example there keeps them with it.

**Example**

```python
import random
from embedloss import create_loss

loss = create_loss("tsdae(del_ratio=0.5)")
rows, name = loss.transform([{"text": "a damaged text is encoded and rebuilt"}], "single", random.Random(0))
print(name, rows)
```
""",
)

SPECS = [DENOISING_AUTO_ENCODER]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
