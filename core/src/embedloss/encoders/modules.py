"""The modules after the transformer: pooling, dense layers, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embedloss.errors import EmbedlossError

# In the order in which sentence-transformers concatenates them, with the old key of each in config.json.
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_ALIASES = {
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "last": "lasttoken",
    "last-token": "lasttoken",
    "weighted-mean": "weightedmean",
}

# Activation functions without parameters; anything else in a config would mean running code that a folder names.
ACTIVATIONS = (
    "Identity", "Tanh", "ReLU", "ReLU6", "GELU", "SiLU", "Mish", "Sigmoid", "LogSigmoid", "LeakyReLU", "ELU", "SELU", "CELU",
    "Softplus", "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "Tanhshrink",
)  # fmt: skip


def pooling_modes(value: Any) -> tuple[str, ...]:
    """Names of pooling modes from one name, "cls+mean", or a sequence; E301 for an unknown one."""
    names = value.split("+") if isinstance(value, str) else list(value)
    modes = tuple(_ALIASES.get(str(n).strip(), str(n).strip()) for n in names)
    wrong = [m for m in modes if m not in POOLING_KEYS]
    if wrong or not modes:
        raise EmbedlossError("E301", f"unknown pooling {', '.join(wrong) or repr(value)}. Known: {', '.join(POOLING_KEYS)}.")
    return modes


class Pooling(nn.Module):
    """One embedding a text from its token embeddings; several modes are concatenated.

    Args:
        modes: names of modes, see `POOLING_KEYS`.
        dimension: size of the token embeddings.
        include_prompt: whether the tokens of the prompt count.
    """

    suffix = "Pooling"

    def __init__(self, modes: str | Sequence[str], dimension: int, include_prompt: bool = True) -> None:
        super().__init__()
        self.modes, self.token_dimension, self.include_prompt = pooling_modes(modes), dimension, include_prompt
        self.dimension = dimension * len(self.modes)

    def forward(self, tokens: Tensor, mask: Tensor, prompt_length: Tensor | None = None) -> Tensor:
        """(texts, dimension) of tokens (texts, length, token dimension) and mask (texts, length), padded on the right."""
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        excluded = prompt_length is not None and not self.include_prompt
        if prompt_length is not None and excluded:
            mask = mask * (positions[None] > prompt_length[:, None])
        # Sums over tokens in half precision lose what a mean is made of.
        with torch.autocast(tokens.device.type, enabled=False):
            wide = tokens.float() if tokens.dtype in (torch.float16, torch.bfloat16) else tokens
            pooled = torch.cat([self._pool(mode, wide, mask, positions) for mode in self.modes], dim=-1).to(tokens.dtype)
        # A text that was cut within its prompt has no tokens left.
        return torch.where(mask.any(1, keepdim=True), pooled, 0.0) if excluded else pooled

    @staticmethod
    def _pool(mode: str, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        if mode == "cls":
            return tokens[torch.arange(len(tokens), device=tokens.device), mask.argmax(1)]
        if mode == "lasttoken":
            return tokens[torch.arange(len(tokens), device=tokens.device), (mask * positions).argmax(1)]
        if mode == "max":
            return tokens.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)
        weights = (mask * positions if mode == "weightedmean" else mask).to(tokens.dtype)
        total = weights.sum(1, keepdim=True).clamp(min=1e-9)
        # A matrix product rather than multiply and sum: no second tensor of the size of the token embeddings.
        summed = torch.bmm(weights[:, None], tokens).squeeze(1)
        return summed / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)

    def config(self) -> dict[str, Any]:
        """config.json, in the old form, which every version reads; only an unusual order of modes needs the new one."""
        canonical = tuple(m for m in POOLING_KEYS if m in self.modes)
        if canonical != self.modes:
            return {
                "embedding_dimension": self.token_dimension,
                "pooling_mode": list(self.modes),
                "include_prompt": self.include_prompt,
            }
        keys = {key: mode in self.modes for mode, key in POOLING_KEYS.items()}
        return {"word_embedding_dimension": self.token_dimension, **keys, "include_prompt": self.include_prompt}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Pooling:
        """From config.json in the old or new form."""
        dimension = config.get("embedding_dimension", config.get("word_embedding_dimension"))
        if not isinstance(dimension, int):
            raise EmbedlossError("E301", "the pooling's config.json does not say its dimension ('word_embedding_dimension').")
        old = [mode for mode, key in POOLING_KEYS.items() if config.get(key)]
        return cls(config.get("pooling_mode", old or "mean"), dimension, bool(config.get("include_prompt", True)))


class Dense(nn.Module):
    """A linear layer with an activation function.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        bias: whether the layer has a bias.
        activation: name of an activation class of torch.nn.
        residual: add the input, projected where the sizes differ.
    """

    suffix = "Dense"

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation: str = "Tanh", residual: bool = False
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise EmbedlossError(
                "E301", f"activation '{activation}' of a Dense module is not supported. Known: {', '.join(ACTIVATIONS)}."
            )
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation, self.dimension, self.use_residual = getattr(nn, activation)(), out_features, residual
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(texts, out_features) of (texts, in_features)."""
        output: Tensor = self.activation(self.linear(embeddings))
        if self.use_residual:
            output = output + (self.residual(embeddings) if hasattr(self, "residual") else embeddings)
        return output

    def config(self) -> dict[str, Any]:
        """config.json."""
        kind = type(self.activation)
        config: dict[str, Any] = {
            "in_features": self.linear.in_features,
            "out_features": self.linear.out_features,
            "bias": self.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__qualname__}",
        }
        # Older versions know neither residual connections nor the key.
        return {**config, "use_residual": True} if self.use_residual else config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Dense:
        """From config.json."""
        name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) not in (None, "sentence_embedding"):
                raise EmbedlossError(
                    "E301", f"a Dense module on '{config[key]}' is not supported; only on 'sentence_embedding'."
                )
        if not name.startswith("torch.nn."):
            raise EmbedlossError(
                "E301", f"activation '{name}' of a Dense module is not supported. Known: {', '.join(ACTIVATIONS)}."
            )
        return cls(
            int(config["in_features"]),
            int(config["out_features"]),
            bool(config.get("bias", True)),
            name.rpartition(".")[2],
            bool(config.get("use_residual", False)),
        )


class Normalize(nn.Module):
    """Embeddings scaled to length 1."""

    suffix = "Normalize"

    def forward(self, embeddings: Tensor) -> Tensor:
        """(texts, dimension) of (texts, dimension)."""
        return nn.functional.normalize(embeddings, p=2, dim=-1)

    def config(self) -> dict[str, Any]:
        """config.json; older versions do not read it."""
        return {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Normalize:
        """From config.json."""
        if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
            raise EmbedlossError("E301", "a Normalize module is supported on 'sentence_embedding' only.")
        return cls()


AFTER = {cls.suffix: cls for cls in (Pooling, Dense, Normalize)}
