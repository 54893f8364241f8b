"""R2-D2 as a draft."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta import Examples, MetricLearner
from lightning_meta.functional.precision import in_float32
from lightning_meta.tasks import EpisodeSpec


class R2D2(MetricLearner):
    r"""Ridge regression on features as the head (Bertinetto et al., ICLR 2019, https://arxiv.org/abs/1805.08136).

    $$W = X^\top (X X^\top + \lambda I)^{-1} Y, \qquad \mathrm{logits} = a\, x' W + b$$

    (equations 5 and 6) with λ, a and b learned in the outer loop.
    """

    def build(self, episodes: EpisodeSpec) -> None:
        self.log_penalty, self.shift = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        return {"weight": ridge(support.x, F.one_hot(support.y, ways), self.log_penalty.exp())}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        return self.scale * features @ summary["weight"] + self.shift


@in_float32
def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """W `(F, N)` of features `(M, F)` and targets `(M, N)`, by the Woodbury identity: M equations in place of F."""
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    return x.T @ torch.linalg.solve(x @ x.T + penalty * identity, y.to(x.dtype))
