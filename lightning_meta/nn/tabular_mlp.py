"""A multi-layer perceptron for rows of a table, with embeddings of categories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_meta.checks import whole, widths
from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.nn.categories import CategoryEmbedding, check_columns
from lightning_meta.nn.heads import seeded


class TabularMLP(Described, nn.Module):
    """Concatenates numeric inputs with embeddings of categories; then linear layers, each followed by a ReLU.

    Use it with `categories: codes` of a `Table`. When training begins, the network gets the number of inputs, and the
    number of texts of each column, from the table. Unseen and missing texts have an embedding each. That of unseen
    texts is 0 and is never trained, since no training row has one.

    Args:
        hidden: Widths of the layers; the last is the number of features.
        embedding_size: Size of the embedding of each column; by default 1.6·n^0.56 for n texts, at most 600.
        columns: Number of codes of each input, including those of unseen and missing texts; 0 for a numeric input. By
            default taken from the table.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        embedding_size: int | None = None,
        columns: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        widths(hidden=hidden)
        if embedding_size is not None:
            whole(1, embedding_size=embedding_size)
        self.hidden, self.embedding_size = tuple(hidden), embedding_size
        self.columns: tuple[int, ...] | None = None
        self.layers = nn.Sequential()
        self._seed = int(torch.randint(2**62, ()))  # so that later layers depend on the random state at construction
        if columns is not None:
            self.take_columns(columns)

    def take_columns(self, columns: Sequence[int]) -> None:
        """Make the layers for these columns.

        Args:
            columns: Number of codes of each input; 0 for a numeric input.

        Raises:
            UserError: The layers were made for other columns, or there are none.
        """
        if self.columns is not None:
            if columns and self.columns != tuple(columns):
                raise UserError(
                    f"columns: the network was made for {list(self.columns)}, and the table has {list(columns)} (codes "
                    "of each input, 0 for a number); leave columns out, or give the table of training"
                )
            return
        if not columns:
            raise UserError(
                "TabularMLP gets its columns from a lightning_meta.sources.Table, and the data is not a table; use "
                "MLP, or give columns"
            )
        check_columns(columns)
        self.columns = tuple(columns)
        self.update_init_args(columns=list(columns))
        with seeded(self._seed):
            embedding = CategoryEmbedding(self.columns, self.embedding_size)
            sizes = [embedding.out_features, *self.hidden]
            layers = [nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(sizes)]
            self.layers = nn.Sequential(nn.Sequential(embedding, *layers[0]), *layers[1:])

    def stages(self) -> list[nn.Module]:
        """The layers in order; the first includes the embeddings."""
        return list(self._made())

    def forward(self, x: Tensor) -> Tensor:
        """Features `(M, hidden[-1])` of inputs `(M, D)`."""
        features: Tensor = self._made()(x.flatten(1))
        return features

    def _made(self) -> nn.Sequential:
        if self.columns is None:
            raise UserError(
                "TabularMLP does not know its inputs yet: train it on a lightning_meta.sources.Table, or give columns"
            )
        return self.layers
