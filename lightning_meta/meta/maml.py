"""Model-agnostic meta-learning."""

from __future__ import annotations

from lightning_meta.meta.gradient_based import GradientBasedLearner


class MAML(GradientBasedLearner):
    r"""Learn an initialisation from which a few gradient steps solve a new task (Finn, Abbeel and Levine, ICML 2017).

    $$\min_\theta \sum_i L_i(\varphi_i; \mathrm{query}), \qquad
      \varphi_i = \theta - \alpha \nabla_\theta L_i(\theta; \mathrm{support}) \text{ (a few times)}$$

    (algorithm 2; https://arxiv.org/abs/1703.03400). The linear head has one output for each class of a training
    task, so a model can only be used with that number of ways. Its options are those of `GradientBasedLearner` and
    `MetaModule`.

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
          classification, as labels are assigned at random in each task. The last step is `test/accuracy`.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Algorithm 2, last step: as in the paper's code, the outer loop applies Adam (by default) to the mean loss over
          tasks; the algorithm takes a gradient step on the sum.
        - Equation 3: cross-entropy is the mean over examples, also in the inner loop. The paper's code divides the sum
          over the N·K support examples by K, so at the same `inner_lr` its inner steps are N times as long, and its
          outer gradients N·Q / K times as large, which matters for clipping but not for Adam. The shipped
          configurations use the paper's values.
        - Section 5.2: the inner loop adapts scale and shift of batch normalisation like any other weight (in the
          paper's code there is no scale, and only the outer loop learns the shift), and ε is 1e-5 (1e-3 in the paper's
          code).
        - Weights have torch's initialisation (Glorot's or a normal one in the paper's code), and `fit` tests the
          checkpoint with the best validation metric (the last one in the paper's code).
    """
