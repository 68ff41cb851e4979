"""Losses of ours inside the trainers of sentence-transformers."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedloss.adapters.columns import (
    Chunk,
    Features,
    count_texts,
    find_format,
    is_plain,
    make_chunks,
    prompt_length,
    roles_of_columns,
    token_ids,
)
from embedloss.adapters.models import wrap_model
from embedloss.adapters.peer import sentence_transformers
from embedloss.embeddings import Embeddings, Scores, StepContext, _Leaves
from embedloss.encoders import Encoder, TextProcessor, encode_chunks, load_encoder, plan_chunks, training_chunk
from embedloss.encoders.text import pad_id
from embedloss.errors import EmbedlossError
from embedloss.formats import LIST_ROLES, DataFormat
from embedloss.loss import Loss, LossOutput, ModelInfo, WeightedSum
from embedloss.registry import create_loss
from embedloss.samplers import text_id


def for_sentence_transformers(
    model: Any,
    loss: str | Loss,
    *,
    roles: Sequence[str] | None = None,
    chunk_tokens: int | None = None,
    recompute: bool = False,
    gather: bool = False,
    guides: Mapping[Any, Any] | None = None,
    num_classes: int | None = None,
    label_dimension: int | None = None,
    seed: int = 0,
) -> ForeignTrainerLoss:
    """A loss of ours as the `loss=` of SentenceTransformerTrainer or CrossEncoderTrainer.

    Columns get their roles by position, as always in these trainers: from the loss's data format with as many columns.

    Args:
        model: a SentenceTransformer or a CrossEncoder, the one that the trainer trains.
        loss: an expression such as "matryoshka(mnrl(), dims=[384, 128]) + 0.05 * gor()", or a loss.
        roles: one role a text column, where the number of columns does not decide.
        chunk_tokens: sort the texts of all columns by length and encode them in chunks of so many padded tokens. By default
            one chunk a column for a SentenceTransformer, and what fits the device for a CrossEncoder. Inputs that are not
            plain token ids (static embeddings, images) are always one chunk a column.
        recompute: keep the activations of one chunk only. Same gradients, a third more work, the memory of one chunk.
        gather: use the texts of all processes as in-batch candidates.
        guides: what the loss calls its guide -> a SentenceTransformer, an `Encoder` or a folder, where the loss holds only
            a name. Guides that are folders or objects already need no entry.
        num_classes: of losses with a classifier.
        label_dimension: size of the teacher's vectors, of losses with a projection.
        seed: of everything random in the loss.

    Raises:
        EmbedlossError: E404 without sentence-transformers, E301 for another model, E302 if the model cannot give what the
            loss needs, and whatever `create_loss` raises.
    """
    peer = sentence_transformers()
    made = create_loss(loss) if isinstance(loss, str) else loss
    options: dict[str, Any] = {"roles": roles, "chunk_tokens": chunk_tokens, "recompute": recompute, "seed": seed}
    if isinstance(model, peer.CrossEncoder):
        return CrossEncoderLoss(model, made, **options)
    if isinstance(model, peer.SentenceTransformer):
        info = {"num_classes": num_classes, "label_dimension": label_dimension}
        return SentenceTransformerLoss(model, made, gather=gather, guides=guides, **info, **options)
    raise EmbedlossError("E301", f"{type(model).__name__} is neither a SentenceTransformer nor a CrossEncoder.")


class ForeignTrainerLoss(nn.Module):
    """What both kinds share. `model` is the attribute that the trainers exchange for the wrapped model."""

    kind = ""

    def __init__(
        self,
        model: Any,
        loss: Loss,
        *,
        roles: Sequence[str] | None = None,
        chunk_tokens: int | None = None,
        recompute: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if self.kind not in loss.spec.models:
            raise EmbedlossError(
                "E302", f"'{loss.spec.name}' trains {' and '.join(loss.spec.models)} models; this is a {self.kind}."
            )
        if chunk_tokens is not None and chunk_tokens < 1:
            raise EmbedlossError("E401", f"chunk_tokens must be at least 1, got {chunk_tokens}.")
        self.model, self.loss = model, loss
        self.roles = None if roles is None else tuple(roles)
        self.requirements = loss.requires()
        self.recompute, self.seed = recompute or self.requirements.recompute, seed
        if chunk_tokens is None and (self.recompute or self.kind == "cross-encoder"):
            chunk_tokens = training_chunk()
        self.chunk_tokens = chunk_tokens
        self.step = 0
        self.output: LossOutput | None = None

    @property
    def inner(self) -> Any:
        """The model without DistributedDataParallel round it."""
        return self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says."""
        try:
            expression = self.loss.to_expression()
        except EmbedlossError:  # a parameter such as a model object has no text
            expression = self.loss.spec.name
        return {"expression": expression, "chunk_tokens": self.chunk_tokens, "recompute": self.recompute}

    def _format(self, columns: int, labels: Any) -> tuple[DataFormat, tuple[str, ...]]:
        form = find_format(self.loss.spec, columns, labels is not None, self.roles)
        roles = self.roles or roles_of_columns(form, columns)
        assert roles is not None  # find_format has refused it
        return form, roles

    def _encode(self, model: Any, chunks: Sequence[Chunk], layers: bool = False) -> list[Tensor]:
        """(texts, dimension) of every layer, or of the final one alone, in the order of the texts."""
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        outputs = []
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            if self.recompute and torch.is_grad_enabled() and not last:
                # Through the inner model: DDP may not see a forward pass in the backward pass. It is told by the last chunk.
                outputs.append(checkpoint(self._forward, inner, chunk.features, layers, use_reentrant=False))
            else:
                outputs.append(self._forward(model, chunk.features, layers))
        order = [place for chunk in chunks for place in chunk.places]
        together = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
        if order == sorted(order):
            return together
        place = torch.argsort(torch.tensor(order)).to(together[0].device)
        return [tensor.index_select(0, place) for tensor in together]

    def _forward(self, model: Any, features: Features, layers: bool) -> list[Tensor]:
        raise NotImplementedError

    def _parts(self, inputs: Embeddings | Scores, labels: Any) -> Tensor | dict[str, Tensor]:
        """The total, or named parts that add up to it: the weighted terms of a sum, the terms of a modifier."""
        if isinstance(self.loss, WeightedSum):
            terms = self.loss.weighted_terms(inputs, labels)
            output = LossOutput.weighted(terms)
            parts: dict[str, Tensor] = {}
            for weight, name, term in terms:
                number = sum(key.partition("#")[0] == name for key in parts)
                parts[f"{name}#{number + 1}" if number else name] = term.total * weight
        else:
            output = self.loss(inputs, labels)
            parts = self._additive(output)
        self.output = LossOutput(output.total.detach(), output.terms, output.metrics)
        if self.model.training and torch.is_grad_enabled():
            self.step += 1
        return parts if len(parts) > 1 else output.total

    @staticmethod
    def _additive(output: LossOutput) -> dict[str, Tensor]:
        """The terms where they add up to the total; the gradient of the total is the first one's."""
        if len(output.terms) < 2:
            return {}
        terms = {name: term.to(output.total.dtype) for name, term in output.terms.items()}
        total = torch.stack([term.reshape(()) for term in terms.values()]).sum()
        if not torch.allclose(total, output.total.detach(), rtol=1e-5, atol=0):
            return {}
        first = next(iter(terms))
        return {**terms, first: terms[first] + (output.total - total)}


class SentenceTransformerLoss(ForeignTrainerLoss):
    """See `for_sentence_transformers`. `output` holds the latest terms and metrics."""

    kind = "bi-encoder"

    def __init__(
        self,
        model: Any,
        loss: Loss,
        *,
        gather: bool = False,
        guides: Mapping[Any, Any] | None = None,
        num_classes: int | None = None,
        label_dimension: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss, **options)
        self.gather = gather
        encoder = _encoder_of(model)
        if self.requirements.layers and (encoder is None or encoder.n_layers == 0):
            raise EmbedlossError(
                "E302",
                f"'{loss.spec.name}' needs all layers; they are found in a SentenceTransformer of Transformer, Pooling, Dense "
                f"and Normalize. This one has {', '.join(type(m).__name__ for m in model.children())}.",
            )
        self.layers = encoder.n_layers if encoder is not None and self.requirements.layers else 0
        size = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
        loss.prepare(ModelInfo(int(size()), encoder, num_classes, label_dimension))
        self.twin = copy.deepcopy(model) if self.requirements.twin else None
        # In a tuple, so that the guides are no submodules: not optimised, not saved, not moved by DDP.
        self._guides = ({key: _guide((guides or {}).get(key, key), model) for key in self.requirements.guides},)

    def forward(self, sentence_features: Sequence[Features], labels: Any = None) -> Tensor | dict[str, Tensor]:
        """The loss of one batch.

        Args:
            sentence_features: one mapping a text column, in order.
            labels: of the rows, or None.

        Returns:
            A scalar, or named parts that add up to the loss.
        """
        columns = list(sentence_features)
        form, roles = self._format(len(columns), labels)
        self._check_transform(form)
        ids = [token_ids(column) for column in columns]
        wanted = [i for i, role in enumerate(roles) if role not in self.requirements.tokens]
        chosen = [columns[i] for i in wanted]
        names, numbers = [roles[i] for i in wanted], [ids[i] for i in wanted]
        leaves = self._leaves(self.model, chosen, names, self.layers > 0)
        for role in dict.fromkeys(names):
            known = [numbers[i] for i, name in enumerate(names) if name == role]
            if all(column is not None for column in known):
                by_row = [text_id(str(row)) for rows in zip(*known, strict=True) for row in rows]  # type: ignore[arg-type]
                leaves.text_ids[role] = torch.tensor(by_row, device=leaves.device)
        if self.twin is not None:
            leaves.twin = self._leaves(self.twin, chosen, names, self.layers > 0)
            leaves.twin.text_ids = leaves.text_ids
        for key, guide in self._guides[0].items():
            with torch.no_grad():
                prompt = self.requirements.guide_prompts.get(key, "")
                embeddings = self._guided(guide.to(leaves.device), chosen, numbers, prompt)
                leaves.guides[key] = self._by_role(embeddings, names)
        for role in self.requirements.tokens & set(roles):
            column = columns[roles.index(role)]
            leaves.tokens[role] = (column["input_ids"], column["attention_mask"])
        return self._parts(Embeddings(leaves), labels)

    def _check_transform(self, form: DataFormat) -> None:
        """E101 if the loss changes texts before they are tokenised, which has happened already in these trainers."""
        row: dict[str, Any] = {role: ["a b", "c d"] if role in form.lists else "a b" for role in form.roles}
        _, name = self.loss.transform([dict(row) for _ in range(4)], form.name, random.Random(0))
        if name != form.name:
            raise EmbedlossError(
                "E101",
                f"'{self.loss.spec.name}' makes '{name}' of '{form.name}' before the texts are tokenised, which this trainer "
                f"does not allow. Give a data set of the format '{name}', or use embedloss.Trainer.",
            )

    def _leaves(self, model: Any, columns: Sequence[Features], names: Sequence[str], layers: bool) -> _Leaves:
        chunks = make_chunks(columns, self.chunk_tokens, _padding_id(self.inner))
        stack = self._encode(model, chunks, layers)
        sizes = [count_texts(column) for column in columns]
        return self._by_role([list(torch.split(layer, sizes)) for layer in stack], names)

    def _by_role(self, stack: Sequence[Sequence[Tensor]], names: Sequence[str]) -> _Leaves:
        """Embeddings of each layer and column -> by role; several columns of one role are a list a row."""
        layers: dict[str, list[Tensor]] = {}
        rows: dict[str, Tensor | None] = {}
        count = len(stack[0][0])
        for role in dict.fromkeys(names):
            places = [i for i, name in enumerate(names) if name == role]
            if len(places) == 1:
                layers[role], rows[role] = [columns[places[0]] for columns in stack], None
                continue
            layers[role] = [torch.stack([columns[i] for i in places], 1).flatten(0, 1) for columns in stack]
            rows[role] = torch.arange(count, device=stack[0][0].device).repeat_interleave(len(places))
        return _Leaves(layers, rows, count, StepContext(self.seed, self.step), self.gather)

    def _forward(self, model: Any, features: Features, layers: bool) -> list[Tensor]:
        if not layers:
            return [model(dict(features))["sentence_embedding"]]
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        transformer, *after = inner.children()
        with _hidden_states(transformer):
            output = model(dict(features))
        embeddings = []
        for hidden in output["all_layer_embeddings"][: self.layers]:
            view: dict[str, Any] = {**features, "token_embeddings": hidden}
            for module in after:
                view = module(view)
            embeddings.append(view["sentence_embedding"])
        # The last hidden state misses the final norm in some models, the output never does.
        return [*embeddings, output["sentence_embedding"]]

    def _guided(
        self, guide: Encoder, columns: Sequence[Features], ids: Sequence[list[list[int]] | None], prompt: str
    ) -> list[list[Tensor]]:
        """Embeddings of a guide: of the student's tokens where both have the same, else of their text."""
        sizes = [count_texts(column) for column in columns]
        if self._same_tokens(guide, columns, prompt):
            keys = ("input_ids", "attention_mask", "token_type_ids")
            plain = [{k: column[k] for k in keys if k in column} for column in columns]
            chunks = make_chunks(plain, self.chunk_tokens, _padding_id(self.inner))
            place = torch.argsort(torch.tensor([place for chunk in chunks for place in chunk.places]))
            embeddings: Tensor = encode_chunks(guide, [chunk.features for chunk in chunks], place)
            return [list(torch.split(embeddings, sizes))]
        texts: list[str] = []
        for column, rows in zip(columns, ids, strict=True):
            if rows is None:
                raise EmbedlossError("E302", "a guide needs texts; the inputs of this model are no token ids.")
            skipped = prompt_length(column)
            texts += _decode(self.inner.tokenizer, [row[skipped:] for row in rows])
        items = guide.processor.tokenize(texts, prompt)
        tokens = self.chunk_tokens or training_chunk()
        plan = plan_chunks([len(i) for i in items], tokens) if guide.processor.chunked else [list(range(len(items)))]
        padded = [guide.processor.pad([items[i] for i in chunk]) for chunk in plan]
        batch = [{k: v.to(guide.device) for k, v in features.items()} for features in padded]
        embeddings = encode_chunks(guide, batch, torch.argsort(torch.tensor([i for chunk in plan for i in chunk])))
        return [list(torch.split(embeddings, sizes))]

    def _same_tokens(self, guide: Encoder, columns: Sequence[Features], prompt: str) -> bool:
        processor, tokenizer = guide.processor, self.inner.tokenizer
        if prompt or not isinstance(processor, TextProcessor) or processor.marks_prompt or not hasattr(tokenizer, "get_vocab"):
            return False
        if not all(is_plain(c) and not prompt_length(c) and bool(c["attention_mask"][:, 0].all()) for c in columns):
            return False
        longest = max(c["input_ids"].shape[1] for c in columns)
        return longest <= processor.max_length and bool(processor.tokenizer.get_vocab() == tokenizer.get_vocab())


class CrossEncoderLoss(ForeignTrainerLoss):
    """See `for_sentence_transformers`. `output` holds the latest terms and metrics."""

    kind = "cross-encoder"

    def __init__(self, model: Any, loss: Loss, **options: Any) -> None:
        super().__init__(model, loss, **options)
        loss.prepare(ModelInfo(int(model.num_labels), None, int(model.num_labels)))

    def forward(
        self, inputs: Sequence[Sequence[Any]], labels: Any = None, prompt: str | None = None, task: str | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The loss of one batch.

        Args:
            inputs: one sequence a column, of texts or lists of texts.
            labels: (rows,) or (rows, k), a list of tensors where their number differs, or None.
            prompt: put before every pair, as the model's own `preprocess` does it.
            task: handed to `preprocess`.

        Returns:
            A scalar, or named parts that add up to the loss.
        """
        form, roles = self._format(len(inputs), labels)
        rows = [self._row(roles, [column[i] for column in inputs]) for i in range(len(inputs[0]))]
        rows, _ = self.loss.transform(rows, form.name, random.Random(f"{self.seed}/{self.step}"))
        pairs: list[tuple[str, str]] = []
        owners: list[int] = []
        for number, row in enumerate(rows):
            query, *others = row.values()
            texts = [text for value in others for text in ([value] if isinstance(value, str) else value)]
            pairs += [(query, text) for text in texts]
            owners += [number] * len(texts)
        device = self.inner.device
        features = self.inner.preprocess(pairs, prompt=prompt, task=task)
        features = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in features.items()}
        chunks = make_chunks([features], self.chunk_tokens, _padding_id(self.inner))
        (logits,) = self._encode(self.model, chunks)
        place = torch.tensor(owners, dtype=torch.int64, device=device)
        scores = Scores.by_row(logits, place, len(rows), StepContext(self.seed, self.step))
        return self._parts(scores, self._labels(labels, scores))

    @staticmethod
    def _row(roles: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for role, value in zip(roles, values, strict=True):
            if role not in row:
                row[role] = list(value) if role in LIST_ROLES and not isinstance(value, str) else value
                continue
            before = [row[role]] if isinstance(row[role], str) else row[role]
            row[role] = [*before, *([value] if isinstance(value, str) else value)]
        return row

    def _labels(self, labels: Any, scores: Scores) -> Any:
        """Lists of labels as (rows, k), padded with 0 where the mask is False."""
        if labels is None or isinstance(labels, Tensor):
            return labels
        tensors = [torch.as_tensor(label) for label in labels]
        kinds = {form.label for form in self.loss.spec.data_formats()}
        fewer = {0 for k in kinds if k in ("grades", "scores")} | {1 for k in kinds if k in ("margin", "margins")}
        for row, (tensor, candidates) in enumerate(zip(tensors, scores.mask.sum(1).tolist(), strict=True), start=1):
            if fewer and candidates - len(tensor) not in fewer:
                raise EmbedlossError("E105", f"row {row} of this batch has {candidates} documents but {len(tensor)} labels.")
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(scores.values.device)

    def _forward(self, model: Any, features: Features, layers: bool) -> list[Tensor]:
        return [model(dict(features))["scores"]]


def _encoder_of(model: Any) -> Encoder | None:
    """The model as an encoder of ours, None where a module is not supported. Leaves no trace in the model."""
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        return wrap_model(model)
    except EmbedlossError:
        return None
    finally:
        for parameter, flag in trained.items():
            parameter.requires_grad_(flag)


def _guide(guide: Any, model: Any) -> Encoder:
    """A frozen encoder from a folder, a hub id or a model object; the trained model itself is copied."""
    if isinstance(guide, str):
        encoder = load_encoder(guide)
    else:
        encoder = wrap_model(copy.deepcopy(guide) if guide is model else guide)
    return encoder.eval().requires_grad_(False)


@contextmanager
def _hidden_states(transformer: Any) -> Iterator[None]:
    """The Transformer module gives all hidden states."""
    config = transformer.model.config
    before = config.output_hidden_states
    config.output_hidden_states = True
    try:
        yield
    finally:
        config.output_hidden_states = before


def _padding_id(model: Any) -> int:
    tokenizer = model.tokenizer
    return pad_id(tokenizer) if hasattr(tokenizer, "pad_token_id") else 0


def _decode(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    if hasattr(tokenizer, "decode_batch"):  # of the package tokenizers
        return list(tokenizer.decode_batch(ids, skip_special_tokens=True))
    return list(tokenizer.batch_decode(ids, skip_special_tokens=True))
