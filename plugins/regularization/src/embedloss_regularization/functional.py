"""Arithmetic of global orthogonal regularisation."""

from __future__ import annotations

import torch
from torch import Tensor

from embedloss.similarity import matrix, unit


def off_diagonal_sums(x: Tensor, similarity: str = "cosine") -> tuple[Tensor, Tensor]:
    """(sum, sum of squares) of the similarities of different rows of x (rows, dim), each pair counted twice.

    Cosines and dot products go through the smaller of the (rows, rows) and the (dim, dim) matrix, whose squares have one sum.
    """
    rows, dim = x.shape
    if similarity in ("cosine", "dot"):
        x = unit(x) if similarity == "cosine" else x
        squares = x.pow(2).sum(1)  # not 1: a zero vector has norm 0
        product = x.T @ x if rows > dim else x @ x.T
        return x.sum(0).pow(2).sum() - squares.sum(), product.pow(2).sum() - squares.pow(2).sum()
    same = torch.eye(rows, dtype=torch.bool, device=x.device)
    others = matrix(similarity, x, x).masked_fill(same, 0.0)
    connected = (x * 0).sum()  # the diagonal may hold the only NaN
    return others.sum() + connected, others.pow(2).sum() + connected


def orthogonality(x: Tensor, similarity: str = "cosine") -> tuple[Tensor, Tensor]:
    """(M1^2, max(0, M2 - 1 / dim)): of the similarities of different rows, M1 is the mean and M2 the mean of squares.

    Args:
        x: (rows, dim); both are 0 with gradient 0 for one row or none.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
    """
    rows, dim = x.shape
    total, squares = off_diagonal_sums(x, similarity)
    pairs = max(rows * (rows - 1), 1)
    return (total / pairs).pow(2), torch.relu(squares / pairs - 1 / dim)
