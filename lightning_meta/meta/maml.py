"""Model-agnostic meta-learning."""

from __future__ import annotations

from lightning_meta.meta.gradient_based import GradientBasedLearner


class MAML(GradientBasedLearner):
    r"""Learn an initialisation from which a few gradient steps solve a new task (Finn, Abbeel and Levine, ICML 2017).

    $$\min_\theta \sum_i L_i(\varphi_i; \mathrm{query}), \qquad
      \varphi_i = \theta - \alpha \nabla_\theta L_i(\theta; \mathrm{support}) \text{ (a few times)}$$

    (algorithm 2). The network is the backbone and a linear head of the training way, so a model serves the way it was
    trained with.

    Deviations from the paper's code: the scale and shift of batch normalisation are adapted in the inner loop like any
    other weight (there, the shift is the outer loop's alone and there is no scale); weights start from torch's
    initialisation.

    Its options are those of `GradientBasedLearner` and `MetaModule`.
    """
