"""Gradient-based meta-learning with learned updates, by learn2learn's gradient transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from lightning_meta.errors import UserError, one_of
from lightning_meta.functional.inner_optimizers import InnerSGD
from lightning_meta.integrations.learn2learn.adapted_transforms import AdaptedTransforms
from lightning_meta.integrations.learn2learn.library import library
from lightning_meta.meta.gradient_based import GradientBasedLearner
from lightning_meta.nn.stateless import Tensors
from lightning_meta.tasks import EpisodeSpec

Transform = Literal["meta_sgd", "kronecker", "meta_curvature", "linear"]


class GBML(GradientBasedLearner):
    r"""MAML with learned transforms of the inner gradients (learn2learn's `GBML` algorithm).

    $$\varphi_{j+1} = \varphi_j - \alpha\, u_\psi(\nabla_\varphi L(\varphi_j))$$

    The transforms' weights ψ are learned in the outer loop together with θ: `meta_sgd`, a rate for each weight (Li et
    al. 2017, https://arxiv.org/abs/1707.09835); `kronecker`, a Kronecker-factored matrix (Arnold et al. 2019,
    https://arxiv.org/abs/1910.13603); `meta_curvature` (Park and Oliva 2019, https://arxiv.org/abs/1902.03356);
    `linear`, a full matrix, for small networks. With `adapt_transform`, each task adapts ψ as well. From the second
    inner step on,

    $$\psi_j = \psi_{j-1} - \alpha \nabla_\psi L(\varphi_j), \qquad
      \varphi_j = \varphi_{j-1} - \alpha\, u_{\psi_{j-1}}(\nabla_\varphi L(\varphi_{j-1}))$$

    before φ_j is updated by u with ψ_j, and the outer loop learns the initial ψ_0 (with `meta_sgd`, this is similar to
    Alpha MAML: Behl et al. 2019, https://arxiv.org/abs/1905.07435).

    At a glance:
        - Shared: an initialisation, and a transform of gradients.
        - Own: φ, by transformed gradients.
        - New task: adapt (needs learn2learn).

    Run it:
        With learn2learn built (`python scripts/build_learn2learn.py`), as any configuration of MAML:
        `python scripts/fit.py --config configs/maml_glyphs.yaml --model lightning_meta.integrations.learn2learn.GBML
        --model.transform meta_sgd`.

    Logged:
        As by `MAML`: `test/accuracy_step_<j>`, the mean over tasks after j inner steps, from 0 to `test_inner_steps`,
        with its `_ci95`; the last is `test/accuracy`. The transforms are not logged but saved in checkpoints. For
        the other logged values see `MetaModule`.

    Deviations:
        - From learn2learn: tasks may be vectorised; normalisation is per task; `adapt_transform` cannot be combined
          with `first_order` (in learn2learn, the first inner step is then of second order, and the second one fails).
        - From Li et al.: the learned rates are multiplied by α and all start at 1.
        - The deviations of `MAML`.

    Args:
        backbone: Network below the head.
        transform: Kind of the transforms u.
        adapt_transform: Whether each task adapts ψ as well, from its second inner step on.
        **options: Arguments of `GradientBasedLearner` and `MetaModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        transform: Transform = "meta_sgd",
        adapt_transform: bool = False,
        **options: Any,
    ) -> None:
        one_of("transform", transform, Transform)
        library()
        super().__init__(backbone, **options)
        self.transform, self.adapt_transform = transform, adapt_transform
        if self.recompute:
            raise UserError("recompute: gradients of the learned transforms would be lost; leave it out")
        if adapt_transform and self.first_order:
            raise UserError(
                "adapt_transform: the transforms' own gradient passes through an inner step, whose derivatives "
                "first_order leaves out; leave one of the two out"
            )
        if adapt_transform and self.inner_optimizer != InnerSGD():
            raise UserError(
                "adapt_transform: the transforms' own gradient is that of plain gradient descent; leave "
                "inner_optimizer out"
            )

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the head, and a transform for each parameter."""
        super().build(episodes)
        make = _maker(self.transform)
        self.names = [name for name, _ in self.network.named_parameters()]
        self.transforms = nn.ModuleList(make(p) for p in self.network.parameters())

    @property
    def direction(self) -> Callable[[Tensors], Tensors]:
        """The transforms u_ψ for the inner loop of one task; with `adapt_transform`, a new object starting at ψ_0."""
        adapted = self.adapted()
        transforms = {n: t for n, t in zip(self.names, self.transforms, strict=True) if n in adapted}
        if self.adapt_transform:
            return AdaptedTransforms(transforms, self.inner_lr)
        # Contiguous, since transforms view their gradients in other shapes.
        return lambda gradients: {name: transforms[name](g.contiguous()) for name, g in gradients.items()}


def _maker(transform: Transform) -> Any:
    l2l = library()
    if transform == "meta_curvature":
        return l2l.optim.MetaCurvatureTransform
    if transform == "kronecker":
        return l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)
    return l2l.optim.ModuleTransform(nn.Linear if transform == "linear" else lambda *_: l2l.nn.Scale(_[0]))
