"""The README's own method, as it stands there, trains, tests, saves and loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta import load
from lightning_meta.batches import Episode, Examples
from lightning_meta.data import EpisodicDataModule
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet, SimpleShot
from lightning_meta.meta.base import Outcome
from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP, Conv4
from lightning_meta.sources import FromDataset, Sinusoid
from lightning_meta.tasks import EpisodeSpec, TasksSpec
from lightning_meta.testing.toys import pictures, sums

README = (Path(__file__).parents[2] / "README.md").read_text()


def readme_block(marker: str) -> str:
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if marker in b)
    return block


def stripes(classes: range) -> list[tuple[torch.Tensor, int]]:
    """Images of 28x28 whose class is the frequency of a wave, at a random phase."""
    generator = torch.Generator().manual_seed(len(classes) + classes.start)
    position = torch.arange(28) / 28
    images = []
    for wave in classes:
        for phase in torch.rand(6, generator=generator).tolist():
            row = 0.5 + 0.5 * torch.sin(2 * torch.pi * ((wave + 1) * position + phase))
            images.append(((255 * row).to(torch.uint8).expand(1, 28, 28).clone(), wave))
    return images


def data() -> EpisodicDataModule:
    source = FromDataset(stripes(range(0, 12, 2)), stripes(range(1, 6, 2)), stripes(range(7, 12, 2)))
    return EpisodicDataModule(
        source, ways=3, shots=1, queries=4, meta_batches_per_epoch=30, val_tasks=10, test_tasks=40, seed=0
    )


def test_readme_method_learns_and_loads(tmp_path: Path) -> None:
    namespace: dict[str, object] = {"__name__": __name__}
    exec(readme_block("class NearestExample"), namespace)
    method = namespace["NearestExample"]
    assert isinstance(method, type)
    globals()["NearestExample"] = method  # where a checkpoint's class path finds it

    L.seed_everything(1)
    module = method(Conv4(in_channels=1, width=8))
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    episodes = data()
    trainer.fit(module, datamodule=episodes)
    (before,) = trainer.test(module, datamodule=episodes, verbose=False)
    assert before["test/accuracy"] > 0.6  # chance is a third
    assert before["test/tasks"] == 40

    path = tmp_path / "checkpoint.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match="allow"):
        load(path)
    again = load(path, allow=[method])
    (after,) = trainer.test(again, datamodule=episodes, verbose=False)
    assert after == before


def test_scores_of_a_wrong_shape_are_refused_before_training() -> None:
    """A loss takes scores of more classes than the task has, and accuracy is only low."""

    class AllFeatures(ProtoNet):
        def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
            return features

    runs = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(UserError, match=r"AllFeatures.predict returned \(9, 8\); expected \(9, 3\): a score for each"):
        runs.fit(AllFeatures(MLP(256, (8,))), pictures())
    assert runs.global_step == 0


def test_training_refuses_predictions_of_a_wrong_shape_and_a_loss_without_a_gradient() -> None:
    """Training is refused without a validation before it; the error of `(M,)` and `(M, 1)` would be over all pairs."""

    class Labels(ProtoNet):
        def predict(self, state: Any, x: Tensor) -> Tensor:
            return super().predict(state, x).argmax(1)

        task_loss = MetaModule.task_loss

    class Detached(Labels):
        def predict(self, state: Any, x: Tensor) -> Tensor:
            return ProtoNet.predict(self, state, x).detach()

    class Columns(ProtoNet):
        def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
            return torch.nn.functional.pad(super().logits(summary, features), (0, 2))

    class Ridge(MetaModule):
        def adapt(self, support: Examples, ways: int) -> Any:
            x = self.backbone(support.x)
            return {"weight": torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ support.y)}

        def predict(self, state: Any, x: Tensor) -> Tensor:
            return (self.backbone(x) @ state["weight"])[:, 0]

    sinusoid = EpisodicDataModule(Sinusoid(), shots=5, queries=10, meta_batch_size=2)
    wrong = [
        (Labels(MLP(256, (8,))), pictures(), r"Labels.predict returned \(9,\); expected \(9, 3\)"),
        (Columns(MLP(256, (8,))), pictures(), r"Columns.predict returned \(9, 5\); expected \(9, 3\)"),
        (
            Ridge(MLP(1, (8,))),
            sinusoid,
            r"Ridge.predict returned \(10,\); expected \(10, 1\):",
        ),
        (Detached(MLP(256, (8,))), pictures(), "Detached: its loss does not depend on a weight that is trained"),
    ]
    for module, episodes, message in wrong:
        options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        runs = L.Trainer(max_steps=1, accelerator="cpu", num_sanity_val_steps=0, **options)
        with pytest.raises(UserError, match=message):
            runs.fit(module, episodes)
        assert runs.global_step == 0


def test_results_of_a_wrong_type_or_shape_are_refused() -> None:
    """Otherwise the run would end in an error of torch that names neither the method nor what it must return."""

    class PerExample(MAML):
        def inner_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, y, reduction="none")

    class Number(ProtoNet):
        def outer_loss(self, summary: dict[str, Tensor], query: Examples, outputs: Tensor) -> Any:
            return 1.0

    class Unnamed(ProtoNet):
        def summarise(self, support: Examples, ways: int) -> Any:
            return super().summarise(support, ways)["prototypes"]

    class OnlyLoss(MAML):
        def task_loss(self, support: Examples, query: Examples, ways: int) -> Any:
            return super().task_loss(support, query, ways).loss

    class MeanOfTasks(ProtoNet):
        def meta_batch_loss(self, batch: Episode) -> Any:
            return super().meta_batch_loss(batch).loss.mean()

    class PerQuery(MAML):
        def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
            outcome = super().task_loss(support, query, ways)
            return outcome._replace(loss=nn.functional.cross_entropy(outcome.outputs, query.y, reduction="none"))

    scalar = "expected a scalar tensor, the mean over examples"
    wrong: list[tuple[type[MetaModule], dict[str, Any], str]] = [
        (PerExample, {}, rf"PerExample.inner_loss returned shape \(6,\); {scalar}"),
        (Number, {}, f"Number.outer_loss returned float; {scalar}"),
        (Unnamed, {}, "Unnamed.summarise returned Tensor; expected tensors by name"),
        (Unnamed, {"batch_norm": "inductive"}, "Unnamed.summarise returned Tensor; expected tensors by name"),
        (
            OnlyLoss,
            {},
            "OnlyLoss.task_loss returned Tensor; expected an Outcome of loss, outputs",
        ),
        (MeanOfTasks, {}, "MeanOfTasks.meta_batch_loss returned Tensor; expected an Outcome of loss, outputs"),
        (PerQuery, {}, rf"PerQuery.task_loss returned shape \(9,\); {scalar}"),
    ]
    for method, options, message in wrong:
        for strategy in ("vmap", "loop"):
            runs = L.Trainer(
                max_steps=1,
                accelerator="cpu",
                logger=False,
                num_sanity_val_steps=0,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            with pytest.raises(UserError, match=message):
                runs.fit(method(MLP(256, (8,)), strategy=strategy, **options), pictures())


def test_a_hook_that_leaves_out_that_of_the_package_is_refused() -> None:
    """Lightning's own hooks do nothing, so nobody calls them; a checkpoint, for example, would not load by its path."""

    class Notes:
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["note"] = "mine"

    class Silent(Notes, ProtoNet):
        pass

    class Derived(Silent):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            super().on_save_checkpoint(checkpoint)

    class EveryEpoch(MultiHead):
        def on_train_epoch_end(self) -> None:
            print("done")

    class OwnStep(ProtoNet):
        def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
            return self.meta_batch_loss(self.inputs(batch)).loss.mean()

    class OwnValidation(ProtoNet):
        def validation_step(self, batch: Episode, batch_idx: int) -> None:
            self.log("val/accuracy", 0.5, batch_size=1)

    class OwnTest(MultiHead):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            print(batch)

    for made, message in [
        (Silent, r"Notes.on_save_checkpoint must call super\(\).on_save_checkpoint"),
        (Derived, r"Notes.on_save_checkpoint must call super\(\).on_save_checkpoint"),
        (EveryEpoch, r"EveryEpoch.on_train_epoch_end must call .* what MultiTaskModule does there is left out"),
        (
            OwnStep,
            r"OwnStep.training_step must call super\(\).training_step\(...\): otherwise what MetaModule does there is "
            "left out, such as running batch statistics; to change the loss, override task_loss or meta_batch_loss",
        ),
        (OwnValidation, r"OwnValidation.validation_step must call .* what MetaModule does there is left out"),
        (OwnTest, r"OwnTest.test_step must call .* what MultiTaskModule does there is left out"),
    ]:
        with pytest.raises(UserError, match=message):
            made(MLP(256, (8,)))

    class Cooperative:
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            getattr(super(), "on_save_checkpoint", print)(checkpoint)

    class Mixed(Cooperative, ProtoNet):
        pass

    Mixed(MLP(256, (8,)))

    class Prepared(EpisodicDataModule):
        def setup(self, stage: str) -> None:
            print(stage)

    with pytest.raises(UserError, match=r"Prepared.setup must call .* what EpisodicDataModule does there is left out"):
        Prepared(Sinusoid(), shots=5, queries=10)

    class Named(ProtoNet):
        def on_train_epoch_end(self) -> None:
            MetaModule.on_train_epoch_end(self)

        def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
            return 2 * super().training_step(batch, batch_idx)

        def on_train_batch_end(self, *args: Any) -> None:  # the package has none
            print("done")

    class Improves(MultiHead):
        def on_improved(self, improved: Any) -> None:  # that of the package does nothing
            print(improved)

    for cls in (Named, Improves):
        cls(MLP(256, (8,)))


def test_an_override_that_would_be_left_out_somewhere_is_refused() -> None:
    """Training would use the method of the package, and evaluation or a predictor that of the user."""

    class Sharp:
        def predict(self, state: Any, x: Tensor) -> Tensor:
            return 10 * super().predict(state, x)  # type: ignore[misc]

    class Rolls:
        def adapt(self, support: Examples, ways: int) -> Any:
            return super().adapt(support, ways)  # type: ignore[misc]

    class OwnFeatures(ProtoNet):
        def features(self, state: dict[str, Any], x: Tensor) -> Tensor:
            return 2 * super().features(state, x)

    class OwnLoss(Baseline):
        def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
            return super().task_loss(support, query, ways)

    refused: list[tuple[tuple[type, ...], str]] = [
        ((Sharp, ProtoNet), r"Sharp.predict: MetricLearner does not call it in training; override logits instead, or"),
        ((Rolls, ProtoNet), r"Rolls.adapt: MetricLearner does not call it in training; override summarise instead, or"),
        ((OwnFeatures,), r"OwnFeatures.features: MetricLearner does not call it in training; change the backbone"),
        ((Sharp, MAML), r"Sharp.predict: GradientBasedLearner does not call it in training; .* override outcome"),
        ((Rolls, MAML), r"Rolls.adapt: GradientBasedLearner does not call it in evaluation; override trajectory"),
        ((OwnLoss,), r"OwnLoss.task_loss: ClassifierLearner does not call it in training; override meta_batch_loss"),
    ]
    for bases, message in refused:
        with pytest.raises(UserError, match=message):
            type("Derived", bases, {})(MLP(256, (8,)))

    class Own:
        """Each decides itself whether `adapt` and `predict` are called."""

        task_loss = MetaModule.task_loss
        trajectory = MetaModule.trajectory

    for bases in [
        (Sharp, Own, ProtoNet),
        (Rolls, Own, ProtoNet),
        (Sharp, Rolls, Own, MAML),
        (Sharp, Rolls, SimpleShot),
    ]:
        type("Derived", bases, {})(MLP(256, (8,)))


class LearnedDirection(MAML):
    """A learned factor of the inner gradients."""

    def build(self, episodes: EpisodeSpec) -> None:
        super().build(episodes)
        self.factor = nn.Parameter(torch.ones(()))

    def direction(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.factor * g for name, g in gradients.items()}


class LearnedLoss(MAML):
    """A learned weight of the inner loss; the outer loss stays that of the task."""

    def build(self, episodes: EpisodeSpec) -> None:
        super().build(episodes)
        self.weight = nn.Parameter(torch.tensor(1.5))

    def inner_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.weight * super().inner_loss(outputs, y)


@pytest.mark.parametrize("options", [{}, {"inner_parameters": "head"}, {"first_order": True}], ids=str)
@pytest.mark.parametrize(("method", "name"), [(LearnedDirection, "factor"), (LearnedLoss, "weight")])
def test_what_inner_steps_learn_is_trained_or_refused(method: type[MAML], name: str, options: dict[str, Any]) -> None:
    def train(**more: Any) -> MAML:
        L.seed_everything(0)
        module = method(MLP(1, (8,)), inner_lr=0.1, inner_steps=2, **options, **more)
        trainer = L.Trainer(
            max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, EpisodicDataModule(Sinusoid(), shots=5, queries=5, val_tasks=4, seed=0))
        return module

    assert float(getattr(train(), name).detach()) not in (1.0, 1.5)  # where they start
    with pytest.raises(UserError, match=r"recompute: the gradients of the parameters in `(direction|inner_loss)`"):
        train(recompute=True)


def _named(self: MAML) -> dict[str, Tensor]:
    return dict(self.network.named_parameters())


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("method", "override", "expected"),
    [
        ("adapted", lambda self: {"head.weight", "head.bais"}, "Own.adapted: the network has no parameter 'head.bais'"),
        ("start", lambda self, *_: {"head.weight": self.head.weight}, "Own.start: 'backbone.* is missing, which"),
        ("start", lambda self, *_: {**_named(self), "b": torch.ones(1)}, "Own.start: the network has no parameter 'b'"),
        ("of_step", lambda self, step: {"b": torch.ones(1)}, "Own.of_step: the network has no parameter 'b'"),
        (
            "rates",
            lambda self, step: dict.fromkeys(self.adapted(), 0.1),
            "rates: by name .* tensors; that of .* is 0.1",
        ),
        ("direction", lambda self, g: {n: v.sum() for n, v in g.items()}, r"direction: \(\) for .*, whose shape is"),
        ("direction", lambda self, g: {"head.bias": g["head.bias"]}, "direction: .* needs a tensor; there is none for"),
        ("direction", lambda self, g: None, "direction: tensors by name of the parameter are needed, got NoneType"),
        ("inner_loss", lambda self, o, y: (o.round() == y).float().mean(), "Own.inner_loss has no gradient, so inner"),
    ],
)
def test_what_does_not_fit_the_parameters_of_an_inner_loop_is_refused(
    method: str, override: Any, expected: str, strategy: Any
) -> None:
    own: type[MAML] = type("Own", (MAML,), {method: override})
    module = own(MLP(1, (8,)), inner_steps=1, strategy=strategy, episodes=EpisodeSpec("regression", (1,), 1))
    data = EpisodicDataModule(Sinusoid(), shots=5, queries=5, val_tasks=4, seed=0)
    data.setup("fit")
    with pytest.raises(UserError, match=expected):
        module.meta_batch_loss(next(iter(data.train_dataloader())))


class HeadAlone(MAML):
    def adapted(self) -> frozenset[str]:
        return frozenset({"head.weight", "head.bias"})


class StartsHeadAlone(HeadAlone):
    def start(self, support: Examples, ways: int) -> dict[str, Tensor]:
        return {name: p for name, p in super().start(support, ways).items() if name in self.adapted()}


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True])
def test_a_start_may_leave_out_what_is_not_adapted(first_order: bool, strategy: Any) -> None:
    data = EpisodicDataModule(Sinusoid(), shots=5, queries=5, val_tasks=4, seed=0)
    data.setup("fit")
    batch, gradients = next(iter(data.train_dataloader())), []
    for method in (HeadAlone, StartsHeadAlone):
        L.seed_everything(0, verbose=False)
        options: dict[str, Any] = {"first_order": first_order, "strategy": strategy}
        module = method(MLP(1, (8,)), inner_steps=2, episodes=EpisodeSpec("regression", (1,), 1), **options)
        gradients.append(torch.autograd.grad(module.meta_batch_loss(batch).loss.sum(), list(module.parameters())))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("method", [MAML, ProtoNet])
def test_a_value_of_a_single_task_is_not_logged(method: type[MetaModule]) -> None:
    class Logs(method):  # type: ignore[misc, valid-type]
        def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
            outcome: Outcome = super().task_loss(support, query, ways)
            self.log("train/own", outcome.loss)
            return outcome

    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with pytest.raises(UserError, match="log: 'train/own' was computed for a single task"):
        L.Trainer(max_steps=1, accelerator="cpu", **options).fit(Logs(MLP(784, (8,)), strategy="vmap"), data())


def test_the_inner_loss_alone_can_be_replaced() -> None:
    support = Examples(torch.randn(6, 1), torch.randn(6, 1))
    query = Examples(torch.randn(4, 1), torch.randn(4, 1))

    class Absolute(MAML):
        def inner_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
            return (outputs - y).abs().mean()

    torch.manual_seed(0)
    module = Absolute(MLP(1, (8,)), inner_lr=0.1, inner_steps=1, episodes=EpisodeSpec("regression", (1,), 1))
    module.configure_model()
    named = dict(module.network.named_parameters())
    loss = (functional_call(module.network, {**named}, support.x) - support.y).abs().mean()
    gradients = torch.autograd.grad(loss, list(named.values()))
    adapted = {n: p - 0.1 * g for (n, p), g in zip(named.items(), gradients, strict=True)}
    outcome = module.task_loss(support, query, 0)
    expected = (functional_call(module.network, {**adapted}, query.x) - query.y).square().mean()
    torch.testing.assert_close(outcome.loss, expected)


class Manual:
    """Manual optimization: a step after every `every` batches, none if it is 0."""

    automatic_optimization = False
    every = 0

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)  # type: ignore[misc]
        if self.every:
            self.manual_backward(loss)
            if (batch_idx + 1) % self.every == 0:
                self.optimizers().step()
                self.optimizers().zero_grad()
        return loss


class ManualProtoNet(Manual, ProtoNet):
    """Of episodes."""


class ManualMultiHead(Manual, MultiHead):
    """Of named tasks."""


def _manual(method: Any, every: int, **options: Any) -> tuple[Any, L.Trainer]:
    size, data = (256, pictures()) if method is ManualProtoNet else (4, sums())
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(logger=False, enable_checkpointing=False, **quiet, **options)
    module = method(MLP(size, (8,)))
    module.every = every
    trainer.fit(module, data)
    return module, trainer


@pytest.mark.parametrize("method", [ManualProtoNet, ManualMultiHead])
def test_manual_optimization_without_a_step_is_said_once(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    _manual(method, 0, max_steps=8, max_epochs=3)
    assert caplog.text.count(f"{method.__name__}.training_step: automatic_optimization is False, and") == 1
    caplog.clear()
    _manual(method, 1, max_epochs=2)
    assert "automatic_optimization" not in caplog.text


@pytest.mark.parametrize("method", [ManualProtoNet, ManualMultiHead])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_manual_optimization_may_accumulate(method: Any, every: int) -> None:
    _, trainer = _manual(method, every, max_epochs=2)  # of three batches
    assert trainer.global_step == 2 * (3 // every)


class RunInSetup(ProtoNet):
    """A method that gives its lazy layer its sizes."""

    def __init__(self, backbone: nn.Module, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.layer = nn.LazyLinear(4)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.layer(torch.ones(1, 3))


def test_a_lazy_layer_may_be_run_in_setup() -> None:
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(RunInSetup(Conv4(width=4, blocks=2)), datamodule=pictures())
    assert trainer.global_step == 1


class Lazy(ProtoNet):
    """A method with a lazy layer of its own."""

    def __init__(self, backbone: nn.Module, within: bool = False, **options: Any) -> None:
        super().__init__(backbone, **options)
        if not within:
            self.layer = nn.Sequential(nn.LazyLinear(4))

    def build(self, episodes: EpisodeSpec) -> None:
        super().build(episodes)
        self.layer = nn.Sequential(nn.LazyLinear(4))


class LazyHead(MultiHead):
    """The same for named tasks."""

    def build(self, spec: TasksSpec) -> None:
        super().build(spec)
        self.layer = nn.Sequential(nn.LazyLinear(4))


def test_a_lazy_layer_of_a_method_is_refused_by_name() -> None:
    cases = [(Lazy(Conv4(width=4, blocks=2), within), pictures()) for within in (False, True)]
    for module, data in [*cases, (LazyHead(MLP(4, (8,))), sums())]:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = L.Trainer(max_steps=1, accelerator="cpu", **quiet)
        said = rf"^{type(module).__name__}: layer\.0 \(LazyLinear\) cannot be used: its sizes are not known yet"
        with pytest.raises(UserError, match=said):
            trainer.fit(module, datamodule=data)
