"""A data set to measure models on: rows of a format, or a collection to search; read and checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedloss.errors import EmbedlossError

if TYPE_CHECKING:
    from embedloss.binding import Binding

COLLECTION = "collection"


class Task:
    """One data set.

    Args:
        source: what `load_rows` reads, or a folder that `load_collection` reads.
        mapping: role -> column.
        drop: columns to leave out.
        format_name: how to read rows where several formats fit.
        split: of a collection.
        prompts: role -> text put before every text of that role.
        loosely: leave out columns that mean nothing known.

    Raises:
        EmbedlossError: E101 to E105 if the data cannot be read, E401 for a role or a split that is not there.
    """

    def __init__(
        self,
        source: str,
        *,
        mapping: Mapping[str, str] | None = None,
        drop: Sequence[str] = (),
        format_name: str | None = None,
        split: str | None = None,
        prompts: Mapping[str, str] | None = None,
        loosely: bool = False,
    ) -> None:
        from embedloss.check import bound_dataset
        from embedloss.data import load_rows
        from embedloss.evaluation.retrieval import is_collection, load_collection

        self.source, self.prompts = source, dict(prompts or {})
        self.collection = load_collection(source, split) if is_collection(source) else None
        self.binding: Binding | None = None
        if self.collection is not None:
            self.format, self.size = COLLECTION, len(self.collection.queries)
            roles: tuple[str, ...] = ("query", "document")
        else:
            if split is not None:
                raise EmbedlossError("E401", f"--split is for folders that hold corpus, queries and qrels; '{source}' is none.")
            dataset = load_rows(source)
            self.binding = best_binding(dataset, mapping or {}, drop, format_name, loosely)
            self.rows = bound_dataset(dataset, self.binding)
            self.format, self.size = self.binding.format.name, len(dataset)
            roles = tuple(self.binding.format.roles)
        for role in self.prompts:
            if role not in roles:
                raise EmbedlossError("E401", f"prompt for the unknown role '{role}'; the roles are {', '.join(roles)}.")

    def describe(self) -> str:
        """What is measured on, for people."""
        if self.collection is not None:
            judged = sum(map(len, self.collection.qrels.values()))
            documents = len(self.collection.corpus)
            return f"{self.source}: {self.size:,} queries, {documents:,} documents, {judged:,} judgements"
        assert self.binding is not None
        return f"{self.source}: {self.size:,} rows\n{self.binding.describe()}"

    def names(self, *, similarity: str | None = None, kind: str | None = None, ks: Sequence[int] | None = None) -> list[str]:
        """The metrics that may be measured, the most telling first; of any similarity or kind of model where none is given."""
        from embedloss.evaluation.embed import similarity_of
        from embedloss.evaluation.evaluators import SIMILARITIES, metric_names

        name = "pairs" if self.collection is not None else self.format
        found = [
            metric
            for each in ([similarity_of(None, similarity)] if similarity else SIMILARITIES)
            for model in ([kind] if kind else ["bi-encoder", "cross-encoder"])
            for metric in metric_names(name, similarity=each, kind=model, ks=ks or (10,))
        ]
        return list(dict.fromkeys(found))

    def measure(self, encoder: Any, **options: Any) -> dict[str, float]:
        """The metrics of an encoder; `options` as of `evaluate` and `retrieval`."""
        from embedloss.evaluation.evaluators import evaluate
        from embedloss.evaluation.retrieval import retrieval

        if self.collection is None:
            return evaluate(encoder, self.rows, self.format, prompts=self.prompts, **options)
        if getattr(encoder, "kind", "") == "cross-encoder":
            raise EmbedlossError("E501", "a cross-encoder does not search a collection; give lists of candidates to rerank.")
        given: dict[str, Any] = {f"{role}_prompt": text for role, text in self.prompts.items()}
        one = self.collection
        return retrieval(encoder, one.corpus, one.queries, one.qrels, **given, **options)

    def baselines(self, ks: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """What a model has to beat: name -> metric -> value."""
        from embedloss.evaluation.baselines import baselines

        return baselines(self.collection or self.rows, self.format, ks=ks)


def best_binding(
    dataset: Any, mapping: Mapping[str, str], drop: Sequence[str], format_name: str | None = None, loosely: bool = False
) -> Binding:
    """The first reading of the columns without faulty rows, for data whose loss is not known; faults raise."""
    from embedloss.binding import bind, fitting, fitting_loosely
    from embedloss.check import check_rows, column_kinds
    from embedloss.examine import plain_spec
    from embedloss.formats import get_format

    kinds = column_kinds(dataset)
    if format_name:
        fmt = get_format(format_name)
        bindings = [bind(kinds, [fmt], loss_name=fmt.name, mapping=mapping, drop=drop)]
    elif loosely:
        bindings = [binding for binding, _ in fitting_loosely(kinds, mapping=mapping, drop=drop)]
    else:
        bindings = fitting(kinds, mapping=mapping, drop=drop)
    reports = [(b, check_rows(dataset, b, plain_spec(b.format))) for b in bindings]
    clean = [r for r in reports if not r[1].faults] or reports[:1]
    # Labels that are all 0 or 1 could be class ids as well; 0 and 1 is what they are.
    best = next((r for r in clean if r[0].format.label == "binary" and r[0].columns == clean[0][0].columns), clean[0])
    best[1].raise_if_faulty()
    return best[0]
