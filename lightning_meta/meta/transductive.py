"""Methods on the features of a classifier that predict all queries of a task together."""

from __future__ import annotations

from abc import ABC

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.functional.prototypes import one_hot
from lightning_meta.meta.all_classes import ClassifierLearner
from lightning_meta.nn.stateless import Tensors


class TransductiveClassifier(ClassifierLearner, ABC):
    """A method that keeps the support set when it adapts, and computes everything else from the whole query set.

    To add one, implement `predict` and set `uses_query_set`.
    """

    one_query_refused = ""
    """Why a single query is refused, as a clause that begins with a verb; empty if it is not."""

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """The features of the support set, `(M, F)`, scaled to length 1, and its one-hot labels `(M, N)`."""
        return {"features": self.scaled_features(support.x), "members": one_hot(support.y, ways)}

    def check_queries(self, count: int) -> None:
        """Refuse a single query if the method cannot predict one.

        Raises:
            UserError: The method cannot predict a single query.
        """
        if count == 1 and self.one_query_refused:
            raise UserError(
                f"{type(self).__name__} predicts all examples together and {self.one_query_refused}; give it more, or "
                "use another method"
            )
