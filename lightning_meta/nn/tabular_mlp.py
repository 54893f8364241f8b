"""A perceptron for the rows of a table, which embeds categories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_meta.checks import whole, widths
from lightning_meta.configuration import Described
from lightning_meta.errors import UserError
from lightning_meta.nn.categories import CategoryEmbedding, check_columns
from lightning_meta.nn.heads import seeded


class TabularMLP(Described, nn.Module):
    """Embeds the categories of a `Table`, beside its numbers; then linear layers, each followed by a ReLU.

    Give the `Table` `categories: codes`. How many inputs there are, and how many texts a column has, the network takes
    from the table when training begins. An unseen and a missing text have an embedding each: that of an unseen one is
    0, and stays so, as no training row has it.

    Args:
        hidden: Widths of the layers; the last is the width of the features.
        embedding_size: Numbers in the embedding of each column; by default 1.6·n^0.56 for n texts, at most 600.
        columns: For each input, 0 for a number, else how many codes it has, those of unseen and missing texts included;
            filled in from the table.
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
        self._seed = int(torch.randint(2**62, ()))  # what is drawn later is decided when the network is made
        if columns is not None:
            self.take_columns(columns)

    def take_columns(self, columns: Sequence[int]) -> None:
        """Make the layers, once it is known what the inputs are.

        Args:
            columns: As the constructor takes them.

        Raises:
            UserError: The layers were made for other columns.
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
                "TabularMLP takes its inputs from a lightning_meta.sources.Table, and the data is none; use MLP, or "
                "give columns"
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
        """The layers one after the other; the first embeds as well."""
        return list(self._made())

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `(M, D)` to features `(M, hidden[-1])`."""
        features: Tensor = self._made()(x.flatten(1))
        return features

    def _made(self) -> nn.Sequential:
        if self.columns is None:
            raise UserError(
                "TabularMLP does not know its inputs yet: train it on a lightning_meta.sources.Table, or give columns"
            )
        return self.layers
