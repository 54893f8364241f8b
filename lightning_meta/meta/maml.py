"""Model-agnostic meta-learning."""

from __future__ import annotations

from lightning_meta.meta.gradient_based import GradientBasedLearner


class MAML(GradientBasedLearner):
    r"""Learn an initialisation from which a few gradient steps solve a new task (Finn, Abbeel and Levine, ICML 2017).

    $$\min_\theta \sum_i L_i(\varphi_i; \mathrm{query}), \qquad
      \varphi_i = \theta - \alpha \nabla_\theta L_i(\theta; \mathrm{support}) \text{ (a few times)}$$

    (algorithm 2; https://arxiv.org/abs/1703.03400). The network is the backbone and a linear head of the training way,
    so a model serves the way it was trained with. Its options are those of `GradientBasedLearner` and `MetaModule`.

    At a glance:
        - Shared: an initialisation θ.
        - Own: φ = θ − α∇L(θ, support).
        - New task: adapt by a few gradient steps.

    Run it:
        `python scripts/fit.py --config configs/maml_glyphs.yaml` without a download; the paper's experiments are
        `configs/maml_sinusoid.yaml`, `configs/maml_omniglot.yaml` and `configs/maml_mini_imagenet.yaml`, and there are
        `configs/maml_cifar_fs.yaml` and, for regression on stored data, `configs/maml_parkinsons.yaml` and
        `configs/maml_table.yaml`.

    Logged:
        - `test/accuracy_step_<j>` (`test/mse_step_<j>` in regression), and likewise for `val`: the mean over tasks
          after j = 0, ..., `test_inner_steps` inner steps, with its `_ci95`. Step 0 is θ itself: about chance in
          classification, as labels are dealt out anew in each task. The last step is `test/accuracy`.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Algorithm 2, the last step: the optimiser (Adam by default, as in the paper's code) steps on the mean over
          tasks, as in that code, where the algorithm takes a gradient step on the sum.
        - Equation 3: cross-entropy is the mean over examples, in the inner loop as well. The paper's code adds up the
          N·K support examples and divides by K, so at the same `inner_lr` its inner steps are N times as long, and its
          outer gradients are N·Q / K times as large, which clipping notices and Adam does not. The shipped
          configurations have the paper's numbers.
        - Section 5.2: the inner loop adapts the scale and shift of batch normalisation like any other weight (in the
          paper's code the shift is the outer loop's alone, and there is no scale), and ε is 1e-5 (there 1e-3).
        - Weights start from torch's initialisation (in the paper's code from Glorot's or a normal one), and `fit` tests
          those of the best validation (there, the last ones).
    """
