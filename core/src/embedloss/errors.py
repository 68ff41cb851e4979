"""One error class, stable codes, and an explanation for each code.

This module imports nothing heavy: the CLI prints these errors before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """What a code means and what to do, as `embedloss explain CODE` prints it."""

    title: str
    text: str


class EmbedlossError(Exception):
    """A mistake that the user can repair. The CLI prints it without a traceback and exits with 1.

    Args:
        code: stable code such as "E101"; `embedloss explain E101` says more.
        message: what is wrong, what was found and what to type.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in EXPLANATIONS:
            raise KeyError(f"error code {code} has no explanation")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class naming:
    """Within it, messages of errors begin with the data set, and the options they name carry it: `--map sts.anchor=q`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EmbedlossError) and self.name:
            text = error.message
            for option in ("--map ", "--drop "):
                text = text.replace(option, f"{option}{self.name}.")
            for option in ("batch-size", "scale-labels"):
                key = option.replace("-", "_")
                text = text.replace(f"--{option}", f"--set data.{self.name}.{key}={'true' if key == 'scale_labels' else 'N'}")
            raise EmbedlossError(error.code, f"data set '{self.name}': {text}") from error


EXPLANATIONS: dict[str, Explanation] = {
    # 1xx: data
    "E101": Explanation(
        "The loss cannot be trained on this data set",
        "The columns, once bound to roles, make no format that the loss takes. Rename columns with\n"
        "--map role=column, leave columns out with --drop column, or choose a loss that takes the data as it is\n"
        "(`embedloss list --format FORMAT`).",
    ),
    "E102": Explanation(
        "A column could not be bound to a role",
        "Roles are bound by name, never by position. Known names are listed by `embedloss formats`; any other\n"
        "column needs --map role=column. A column that no role needs is refused, because it may be data you\n"
        "meant to use: leave it out with --drop column.",
    ),
    "E103": Explanation(
        "The data file could not be read",
        "The file is missing, empty, not UTF-8, damaged, or of an unknown kind. Known kinds: .jsonl, .json, .csv,\n"
        ".tsv, .parquet, a folder saved by `datasets`, or the id of a data set on the hub.",
    ),
    "E104": Explanation(
        "Some values cannot be used",
        "A text is null, empty or not a text; or a list of texts holds such a value. The row numbers in the\n"
        "message count from 1. Repair or remove these rows.",
    ),
    "E105": Explanation(
        "Labels do not fit the loss",
        "Each loss declares the kind of label it takes (class, 0/1, score, grades, teacher scores, vectors) and the\n"
        "range. `embedloss show LOSS` prints both. Nothing is converted unless you ask (--scale-labels).",
    ),
    "E106": Explanation(
        "The data set is too small, or a batch cannot be built",
        "In-batch losses need at least two rows; losses over classes need at least two classes with two rows each.",
    ),
    "E107": Explanation(
        "A conversion is not possible",
        "`embedloss formats` lists the conversions and what each needs.",
    ),
    "E108": Explanation(
        "Hard negatives cannot be mined",
        "A setting is out of range, a file is missing that judgements need, or no document is left as a negative.\n"
        "`embedloss mine --help` lists the settings. Filters that take out every candidate are named in the message.",
    ),
    # 2xx: losses, plugins, expressions
    "E201": Explanation(
        "Unknown loss",
        "`embedloss list` prints the losses that are installed. Each family is a distribution of its own:\n"
        "`pip install embedloss-ranking`, or everything with `pip install 'embedloss[all]'`.",
    ),
    "E202": Explanation(
        "The loss expression cannot be parsed",
        'An expression is a loss with literal arguments, weights and sums, such as "mnrl(scale=20)" or\n'
        '"matryoshka(mnrl(), dims=[384, 128]) + 0.05 * gor()". It is parsed, never evaluated.',
    ),
    "E203": Explanation(
        "Wrong parameter of a loss",
        "`embedloss show LOSS` prints the parameters with their defaults and allowed values.",
    ),
    "E204": Explanation(
        "Two plugins register the same name",
        "Names of losses are unique. Uninstall one of the two distributions, or disable it with\n"
        "EMBEDLOSS_DISABLE_PLUGINS=distribution.",
    ),
    "E205": Explanation(
        "A plugin could not be loaded",
        "`embedloss plugins` prints every plugin with its version and, where it failed, the reason.",
    ),
    "E206": Explanation(
        "The loss was called with inputs it does not take",
        "A loss takes embeddings by role, all of the same number of rows, and the label that its spec declares.",
    ),
    "E207": Explanation(
        "The loss became non-finite",
        "A loss, a term of it or a gradient became NaN or infinite. Usual causes: a learning rate that is too high,\n"
        "half precision without scaling, or labels of the wrong scale.",
    ),
    # 3xx: models
    "E301": Explanation(
        "The model could not be loaded",
        "A model is a folder in sentence-transformers layout, a folder of transformers, or the id of one on the hub.\n"
        "Supported modules: Transformer, Pooling, Normalize, Dense, StaticEmbedding.",
    ),
    "E302": Explanation(
        "The model cannot give what the loss needs",
        "Some losses need all hidden layers, a tokenizer, or a model of one kind (bi-encoder or cross-encoder).",
    ),
    # 4xx: configuration and output
    "E401": Explanation(
        "Wrong configuration",
        "Keys and values of a YAML file are the long options of `embedloss train`, with underscores.",
    ),
    "E402": Explanation(
        "The output folder cannot be used",
        "The folder is not empty, cannot be written, or the disk is full. --overwrite replaces what is there;\n"
        "--resume goes on from its last checkpoint.",
    ),
    "E403": Explanation(
        "The checkpoint cannot be resumed",
        "The folder holds no complete checkpoint, or it belongs to a run with other settings.",
    ),
    "E404": Explanation(
        "An optional package is missing",
        "The message names the package and the command that installs it.",
    ),
    "E405": Explanation(
        "The cache of a guide cannot be used",
        "--cache-guide keeps a guide's embeddings in EMBEDLOSS_CACHE/guides, by default ~/.cache/embedloss/guides, one\n"
        "folder a guide. Any of them may be deleted; what is missing is computed again.",
    ),
    "E406": Explanation(
        "The folder is no run",
        "`embedloss report` reads the output folders of `embedloss train`: metrics.jsonl, results.json, run.yaml and so\n"
        "on. A run that is not finished can be read as well.",
    ),
    "E501": Explanation(
        "The evaluation cannot be done",
        "The metric does not fit the data, or the data names queries or documents that are not there.",
    ),
}
