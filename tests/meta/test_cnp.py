"""Conditional neural processes: their equations, their gradients, and the exact Gaussian process beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta import EpisodicDataModule
from lightning_meta.batches import Episode, Examples
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source, TaskGenerator
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from lightning_meta.sources import GaussianProcess
from lightning_meta.tasks import EpisodeSpec, GaussianRegression
from lightning_meta.testing import toys


class TwoTargets(Source):
    """Stored tasks of three inputs and two targets, in units far from 1."""

    regression = True

    def pools(self) -> dict[Any, Pool]:
        found = {}
        for seed, split in enumerate(("train", "val", "test")):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(40, 3, generator=generator)
            y = torch.stack([50 + 9 * x.sum(1), -3 + 0.1 * x[:, 0]], 1).double()
            found[split] = Pool(x, torch.tensor([20, 20]), (f"{split} 0", f"{split} 1"), ("", ""), y=y)
        return found


def episodic(source: Source | TaskGenerator, **options: Any) -> EpisodicDataModule:
    few = {"shots": 4, "queries": 6, "meta_batch_size": 3, "meta_batches_per_epoch": 4, "val_tasks": 3, "test_tasks": 5}
    return EpisodicDataModule(source, **{**few, "evaluation_meta_batch_size": 2, "seed": 0, **options})


def made(source: Source | TaskGenerator) -> tuple[lm.CNP, EpisodicDataModule, Episode]:
    """A small CNP in float64, its data, and a meta-batch."""
    data = episodic(source)
    data.setup("fit")
    assert data.spec is not None
    torch.manual_seed(0)
    inputs = data.spec.input_shape[0] + data.spec.outputs
    module = lm.CNP(MLP(inputs, (7, 5)), decoder=(6,), least_deviation=0.2, episodes=data.spec)
    module.configure_model()
    return module.double(), data, module.inputs(data.datasets["train"].__getitems__(range(3)))


def by_hand(module: lm.CNP, support: Examples, x: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 1 and 2 and the deviation of the published code, one example at a time."""
    names = dict(module.named_parameters())
    first, second = (tuple(names[f"backbone.layers.{i}.0.{part}"] for part in ("weight", "bias")) for i in (0, 1))
    encoded = []
    for a, y in zip(support.x, support.y, strict=True):
        h = torch.cat([a, y])
        for weight, bias in (first, second):
            h = (weight @ h + bias).clamp_min(0)
        encoded.append(module.last.weight @ h + module.last.bias)
    r = sum(encoded[1:], encoded[0]) / len(encoded)
    hidden: Any = module.decoder[0].layers[0][0]  # type: ignore[index]
    last: Any = module.decoder[1]
    rows = [last.weight @ (hidden.weight @ torch.cat([r, a]) + hidden.bias).clamp_min(0) + last.bias for a in x]
    mean, rho = torch.stack(rows).chunk(2, -1)
    return mean, 0.2 + 0.8 * (1 + rho.exp()).log()


@pytest.mark.parametrize("source", [GaussianProcess(), TwoTargets()], ids=["made", "stored"])
def test_the_loss_and_its_gradient_are_those_of_the_equations(source: Source | TaskGenerator) -> None:
    module, _, batch = made(source)
    outcome = module.meta_batch_loss(batch)
    parameters = list(module.parameters())
    gradient = torch.autograd.grad(outcome.loss.mean(), parameters)
    losses = []
    for t in range(3):
        support = Examples(batch.support.x[t].double(), batch.support.y[t].double())
        x = torch.cat([support.x, batch.query.x[t].double()])
        y = torch.cat([support.y, batch.query.y[t].double()])
        mean, deviation = by_hand(module, support, x)
        losses.append(-torch.distributions.Normal(mean, deviation).log_prob(y).sum(-1).mean())
        torch.testing.assert_close(outcome.outputs[t], torch.cat([mean, deviation], 1)[4:], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outcome.loss, torch.stack(losses), rtol=1e-6, atol=1e-6)
    for a, b in zip(gradient, torch.autograd.grad(torch.stack(losses).mean(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_order_of_the_support_set_does_not_matter_and_any_size_is_served() -> None:
    module, _, batch = made(GaussianProcess())
    support, x = Examples(batch.support.x[0].double(), batch.support.y[0].double()), batch.query.x[0].double()
    expected = module.predict(module.adapt(support, 0), x)
    for order in ([3, 1, 0, 2], [2, 3, 1, 0]):
        turned = Examples(support.x[order], support.y[order])
        torch.testing.assert_close(module.predict(module.adapt(turned, 0), x), expected, rtol=1e-12, atol=1e-12)
    one = Examples(support.x[:1], support.y[:1])
    assert module.predict(module.adapt(one, 0), x).shape == (6, 2)
    assert not module.transductive


def test_predictions_and_errors_of_stored_tasks_are_in_the_units_of_the_targets() -> None:
    data = episodic(TwoTargets())
    torch.manual_seed(0)
    module = lm.CNP(MLP(5, (16,)), decoder=(16,))
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(max_steps=4, accelerator="cpu", num_sanity_val_steps=0, limit_val_batches=0, **quiet)
    trainer.fit(module, data)
    metrics = trainer.test(module, data, verbose=False)[0]
    stored = module.test_report["predictions"]
    mean, deviation = stored["output"][..., :2], stored["output"][..., 2:]
    assert metrics["test/mse"] == pytest.approx(((mean - stored["target"]) ** 2).mean(), rel=1e-4)
    scale = np.array(module.spec.target_scale)
    density = stats.norm.logpdf(stored["target"], mean, deviation) + np.log(scale)  # of the standardised target
    assert metrics["test/loss"] == pytest.approx(-density.sum(-1).mean(), rel=1e-3)
    task = data.datasets["test"][1]
    found = module.predictor(task.support.x[0], task.support.y[0])(task.query.x[0])
    np.testing.assert_allclose(found, stored["output"][1], rtol=1e-4)


def test_gaussian_regression_is_the_density_of_scipy() -> None:
    task, (mean, deviation, y) = GaussianRegression(2), torch.rand(3, 5, 2, dtype=torch.float64) + 0.1
    outputs = torch.cat([mean, deviation], 1)
    expected = -stats.norm.logpdf(y, mean, deviation).sum(1)
    np.testing.assert_allclose(task.losses(outputs, y), expected)
    assert float(task.score(outputs, y)) == pytest.approx(float((mean - y).square().mean()))
    assert torch.equal(task.readable(outputs), outputs)


@pytest.mark.parametrize(("length_scale", "amplitude", "noise"), [(0.4, 1.0, 0.02), (1.3, 2.5, 0.5)])
def test_the_exact_posterior_is_that_of_scikit_learn(length_scale: float, amplitude: float, noise: float) -> None:
    source = GaussianProcess(length_scale, amplitude, noise)
    data = episodic(source, shots=7)
    data.setup("fit")
    batch = data.datasets["train"].__getitems__(range(3))
    mean, deviation = source.posterior(batch.support, batch.query.x)
    kernel = ConstantKernel(amplitude**2, "fixed") * RBF(length_scale, "fixed") + WhiteKernel(noise**2, "fixed")
    for t in range(3):
        exact = GaussianProcessRegressor(kernel, alpha=0, optimizer=None)
        exact.fit(batch.support.x[t].double().numpy(), batch.support.y[t, :, 0].double().numpy())
        expected, spread = exact.predict(batch.query.x[t].double().numpy(), return_std=True)
        np.testing.assert_allclose(mean[t, :, 0], expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(deviation[t, :, 0], spread, rtol=1e-5, atol=1e-7)


def test_functions_have_the_covariance_of_the_kernel_and_the_posterior_is_calibrated() -> None:
    source = GaussianProcess(0.4, 1.5, 0.1)
    data = episodic(source, shots=5, queries=5, meta_batch_size=8000, meta_batches_per_epoch=1)
    data.setup("fit")
    batch = data.datasets["train"].__getitems__(range(8000))
    mean, deviation = source.posterior(batch.support, batch.query.x)
    standard = ((batch.query.y - mean) / deviation)[:, 0, 0]
    assert stats.kstest(standard, "norm").pvalue > 1e-6
    assert stats.kstest(batch.query.y[:, 0, 0] / math.hypot(1.5, 0.1), "norm").pvalue > 1e-6
    assert stats.kstest(batch.query.x[:, 0, 0], stats.uniform(-2, 4).cdf).pvalue > 1e-6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GaussianProcess(0.0), "length_scale: a positive number"),
        (lambda: GaussianProcess(x_range=(1.0, -1.0)), r"expected \(low, high\) with low <= high"),
        (lambda: GaussianProcess(noise=1e-5), "noise: at least a thousandth of the amplitude"),
        (lambda: lm.CNP(MLP(2), least_deviation=1.0), "least_deviation: a number from 0 to below 1"),
        (lambda: lm.CNP(MLP(2), decoder=(0,)), "decoder: whole numbers"),
        (lambda: lm.CNP(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))), "backbone: CNP encodes each example alone"),
        (
            lambda: lm.CNP(MLP(256), episodes=EpisodeSpec("classification", (1, 16, 16), 3)).configure_model(),
            "CNP predicts real targets; for classification use ProtoNet",
        ),
        (
            lambda: lm.CNP(MLP(3), episodes=EpisodeSpec("regression", (1,), 1)).configure_model(),
            r"MLP does not take inputs of shape \(2,\)",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["CNP", "MAML"])
def test_the_picture_of_predicted_functions(method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = lm.CNP(MLP(2, (8,)), decoder=(8,)) if method == "CNP" else lm.MAML(MLP(1, (8,)), inner_steps=1)
    picture = lm.pictures.PredictedFunctions(2)
    quiet: dict[str, Any] = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", callbacks=[picture], **quiet)
    data = episodic(GaussianProcess() if method == "CNP" else lm.sources.Sinusoid())
    trainer.test(module, data, verbose=False)
    assert "could not be drawn" not in caplog.text
    assert (tmp_path / "figures" / "predicted_functions.png").stat().st_size > 10_000
    panel = picture.draw(module, data.datasets["test"], tmp_path).axes[0]
    labels = {"support", "queries", method}
    if method == "CNP":
        labels |= {"two standard deviations", "exact Gaussian process", "its two standard deviations"}
        line = next(line for line in panel.lines if line.get_label() == "exact Gaussian process")
        task = data.datasets["test"][0]
        x = torch.tensor(np.array(line.get_xdata())).view(1, -1, 1)
        mean, _ = GaussianProcess().posterior(task.support, x)
        np.testing.assert_allclose(line.get_ydata(), mean.flatten(), atol=1e-4)  # type: ignore[arg-type]
    assert set(panel.get_legend_handles_labels()[1]) == labels


def test_the_picture_refuses_classes_and_several_inputs(tmp_path: Path) -> None:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(accelerator="cpu", callbacks=[lm.pictures.PredictedFunctions()], **quiet)
    with pytest.raises(UserError, match="draws regression, and these tasks are classes"):
        trainer.test(lm.ProtoNet(MLP(256, (4,))), toys.pictures(), verbose=False)
    with pytest.raises(UserError, match=r"draws functions of one input, these have \(3,\)"):
        trainer.test(lm.CNP(MLP(5, (4,))), episodic(TwoTargets()), verbose=False)
    with pytest.raises(UserError, match="tasks: at least 1 is needed"):
        lm.pictures.PredictedFunctions(0)
