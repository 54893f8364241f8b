"""Properties of the multi-task modules that a user would notice."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
import pytest
import torch
from torch import Tensor, nn

import lightning_meta
from lightning_meta.batches import SPLITS, Examples, TaskBatch
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.multitask import (
    Conditioned,
    CrossStitch,
    Independent,
    MixtureOfExperts,
    MultiHead,
    MultiTaskModule,
)
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import Binary, Classification, Regression, TasksSpec
from lightning_meta.weightings import DynamicWeightAverage, RandomWeights, Uncertainty
from tests.multitask.toys import TASKS, Given, Toys, backbone, data, results_of, train, trainer

NAMES = ("sum", "largest", "sign")
METHODS: dict[str, Any] = {
    "independent": Independent,
    "multi_head": MultiHead,
    "multi_head_depth_1": partial(MultiHead, shared_depth=1),
    "concatenate": partial(Conditioned, at=(0, 2)),
    "film": partial(Conditioned, enters="film", at=(0, 1, 2), descriptor="embedding"),
    "gate": partial(Conditioned, enters="gate", at=(1,)),
    "add": partial(Conditioned, enters="add", at=(0, 1)),
    "cross_stitch": CrossStitch,
    "mixture_of_experts": partial(MixtureOfExperts, experts=3),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def made(method: Any, spec: TasksSpec, seed: int = 5, **options: Any) -> Any:
    lightning.seed_everything(seed, verbose=False)
    module = method(**{"backbone": backbone(), "tasks": spec, **options})
    module.configure_model()
    return module.double()


def spec_of(names: tuple[str, ...] = NAMES, **options: Any) -> TasksSpec:
    given = data(names, **options)
    given.setup("fit")
    assert given.spec is not None
    return given.spec


@every_method
def test_it_learns(method: Any) -> None:
    given = data()
    module = train(method, given, 300)
    logged = results_of(module, given)
    assert logged["test/r2/sum"] > 0.7
    assert logged["test/accuracy/largest"] > 0.65
    assert logged["test/accuracy/sign"] > 0.7
    assert logged["test/accuracy"] == pytest.approx(
        (logged["test/accuracy/largest"] + logged["test/accuracy/sign"]) / 2
    )
    assert logged["test/score"] == pytest.approx((2 * logged["test/accuracy"] + logged["test/r2"]) / 3)


@every_method
def test_a_checkpoint_loads_by_its_path_alone(method: Any, tmp_path: Path) -> None:
    given = data()
    lightning.seed_everything(3, verbose=False)
    module = method(backbone=backbone(), weighting=Uncertainty()) if method is not Independent else method(backbone())
    runner = trainer(6)
    runner.fit(module, datamodule=given)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert results_of(lightning_meta.load(tmp_path / "a.ckpt"), given) == results_of(module, given)


@pytest.mark.parametrize(
    "name", [n for n in METHODS if n not in ("concatenate", "film", "gate", "add", "cross_stitch")]
)
def test_permuting_tasks_permutes_results(name: str) -> None:
    order = ("sign", "sum", "largest")
    one, other = (train(METHODS[name], data(names), 20) for names in (NAMES, order))
    first, second = results_of(one, data(NAMES)), results_of(other, data(order))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == pytest.approx(second[key], rel=1e-6), key


@pytest.mark.parametrize("enters", ["film", "gate", "add", "concatenate"])
def test_permuting_tasks_permutes_what_a_conditioned_network_predicts(enters: str) -> None:
    """The weights of the one-hot columns are permuted as well, since they are numbered and not named."""
    order = ("sign", "sum", "largest")
    one, other = (made(Conditioned, spec_of(names), enters=enters, at=(1,)) for names in (NAMES, order))
    places = [NAMES.index(name) for name in order]
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        if name.startswith("entries"):
            p.data.normal_()
            q.data.copy_(p[:, places])
        else:
            q.data.copy_(p)
            if enters == "concatenate" and p.shape == (12, 15):
                q.data[:, 12:] = p[:, 12:][:, places]
    x = torch.randn(6, 4, dtype=torch.float64)
    rows = {name: torch.arange(6) for name in NAMES}
    expected, found = one(x, rows), other(x, rows)
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("enters", ["film", "gate", "add", "concatenate"])
@pytest.mark.parametrize("at", [(0,), (1,), (2,), (0, 1, 2)])
def test_with_a_constant_descriptor_it_is_an_unconditioned_network(enters: str, at: tuple[int, ...]) -> None:
    spec = spec_of()
    constant = TasksSpec(spec.tasks, spec.input_shapes, spec.train_examples, dict.fromkeys(NAMES, (0.5, -2.0)))
    module = made(Conditioned, constant, enters=enters, at=at, descriptor="given")
    x = torch.randn(6, 4, dtype=torch.float64)
    rows = {name: torch.arange(6) for name in NAMES}
    outputs = module(x, rows)
    for name in NAMES:  # whichever task asks, the answer is the same
        torch.testing.assert_close(outputs[name][:, 0], outputs["largest"][:, 0], rtol=1e-12, atol=1e-12)
    if enters != "concatenate":  # z enters through weights that start at zero
        plain = nn.Sequential(backbone().double(), module.shared_head)
        torch.testing.assert_close(outputs["largest"], plain(x), rtol=1e-12, atol=1e-12)


def test_a_concatenated_constant_is_a_bias() -> None:
    spec = spec_of()
    constant = TasksSpec(spec.tasks, spec.input_shapes, spec.train_examples, dict.fromkeys(NAMES, (0.5, -2.0)))
    module = made(Conditioned, constant, enters="concatenate", at=(0,), descriptor="given")
    wide = next(m for m in module.backbone.modules() if isinstance(m, nn.Linear))
    plain = nn.Sequential(backbone().double(), module.shared_head)
    first = next(m for m in plain.modules() if isinstance(m, nn.Linear))
    assert torch.equal(wide.weight[:, :4], first.weight)
    first.bias.data += wide.weight[:, 4:].detach() @ torch.tensor([0.5, -2.0], dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(module(x, {"largest": torch.arange(6)})["largest"], plain(x), rtol=1e-12, atol=1e-12)


def test_what_a_conditioned_network_says_depends_on_the_task() -> None:
    module = train(partial(Conditioned, enters="film", at=(1, 2)), data(), 100)
    x = torch.randn(6, 4, dtype=torch.float64)
    outputs = module(x, dict.fromkeys(("largest", "sign"), torch.arange(6)))
    assert (outputs["largest"][:, :2] - outputs["sign"]).abs().max() > 0.1


def test_multi_head_with_one_task_is_the_plain_network() -> None:
    spec = spec_of(("largest",))
    module = made(MultiHead, spec)
    plain = nn.Sequential(copy.deepcopy(module.backbone), copy.deepcopy(module.heads[0]))
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    loss = spec.tasks["largest"].loss(module(x, {"largest": torch.arange(9)})["largest"], y)
    expected = nn.functional.cross_entropy(plain(x), y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
    own = torch.autograd.grad(loss, [*module.backbone.parameters(), *module.heads.parameters()])
    for a, b in zip(own, torch.autograd.grad(expected, list(plain.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_with_nothing_shared_multi_head_is_independent() -> None:
    shared, apart = (train(m, data(), 12) for m in (partial(MultiHead, shared_depth=0), Independent))
    for i in range(3):
        own = [[p.detach() for m in module.own_modules(i) for p in m.parameters()] for module in (shared, apart)]
        assert sum(p.numel() for p in own[0]) == sum(p.numel() for p in own[1])
        for a, b in zip(*(sorted(ps, key=lambda p: (p.shape, float(p.sum()))) for ps in own), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_cross_stitch_of_nothing_is_independent_and_of_halves_is_the_mean() -> None:
    spec = spec_of(("sum", "largest"))
    x = torch.randn(5, 4, dtype=torch.float64)
    rows = {name: torch.arange(5) for name in ("sum", "largest")}
    stitched, apart = made(CrossStitch, spec, own=1.0), made(Independent, spec)
    for name, outputs in apart(x, rows).items():
        torch.testing.assert_close(stitched(x, rows)[name], outputs, rtol=1e-12, atol=1e-12)
    halves = made(CrossStitch, spec, own=0.5)
    with torch.no_grad():
        for p in halves.backbone[1].parameters():
            p.add_(0.1 * torch.randn_like(p))
    h = [x, x]
    for stage in range(2):
        h = [column[stage](i) for column, i in zip(halves.backbone, h, strict=True)]
        h = [(h[0] + h[1]) / 2] * 2
    torch.testing.assert_close(halves(x, rows)["sum"], halves.heads[0](h[0]), rtol=1e-12, atol=1e-12)


def test_experts_are_mixed_as_in_the_paper() -> None:
    spec = spec_of()
    module = made(MixtureOfExperts, spec, experts=3)
    x = torch.randn(5, 4, dtype=torch.float64)
    found = module(x, {"largest": torch.tensor([4, 1])})["largest"]
    for row, example in zip(found, (4, 1), strict=True):
        gate = (module.gates[1].weight @ x[example]).softmax(0)
        mixed = sum(g * expert(x[example : example + 1])[0] for g, expert in zip(gate, module.backbone, strict=True))
        torch.testing.assert_close(row, module.heads[1](mixed), rtol=1e-12, atol=1e-12)
    weights = [torch.cat([p.flatten() for p in expert.parameters()]) for expert in module.backbone]
    assert not torch.equal(weights[0], weights[1]), "experts that start equal stay equal"
    assert not torch.equal(weights[1], weights[2])


def test_what_is_shared_and_what_is_not() -> None:
    spec = spec_of()
    counts = {}
    for name, method in METHODS.items():
        module = made(method, spec)
        own = {id(p) for i in range(3) for m in module.own_modules(i) for p in m.parameters()}
        shared = module.shared_parameters()
        assert not own & {id(p) for p in shared}
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert trained == sum(p.numel() for p in shared) + sum(p.numel() for p in module.parameters() if id(p) in own)
        counts[name] = sum(p.numel() for p in shared)
    assert counts["independent"] == 0
    assert counts["multi_head"] == sum(p.numel() for p in backbone().parameters())
    assert counts["multi_head_depth_1"] == 4 * 12 + 12


class ByColumn(MultiTaskModule):
    """A method of a user's own, in a few lines: a network for all, and a head that is a vector."""

    def build(self, spec: TasksSpec) -> None:
        self.heads = nn.ModuleList(self.head(name, 12) for name in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = self.backbone(x)
        return {name: self.heads[self.names.index(name)](features[i]) for name, i in rows.items()}


def test_a_method_of_a_users_own() -> None:
    given = data()
    own, ours = train(ByColumn, given, 20), train(MultiHead, given, 20)
    assert results_of(own, given) == results_of(ours, given)


def test_heads_of_absent_tasks_do_not_drift() -> None:
    given = data(tasks_per_batch=1, batches_per_epoch=50)
    lightning.seed_everything(3, verbose=False)
    module = MultiHead(backbone(), optimizer=partial(torch.optim.Adam, lr=0.1))
    moved: list[set[str]] = []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.before = [next(h.parameters()).detach().clone() for h in module.heads]

        def on_train_batch_end(self, *_: Any) -> None:
            now = [next(h.parameters()) for h in module.heads]
            changed = [not torch.equal(a, b) for a, b in zip(self.before, now, strict=True)]
            moved.append({name for name, c in zip(module.names, changed, strict=True) if c})

    trainer(30, callbacks=[Watch()]).fit(module, datamodule=given)
    batches = given.train_batches()
    assert moved == [set(batches.ids(number)) for number in range(30)]
    assert len(set(map(frozenset, moved))) == 3


def test_a_batch_of_all_tasks_does_not_hide_that_a_later_one_lacks_some() -> None:
    module = train(MultiHead, data(), 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    names = module.names
    found = []
    for batch in (names, names[:1], names[1:], names, names[:2]):
        module._presence.note(batch, len(names))
        found.append(module.absent_tasks(optimizer))
        module.on_before_optimizer_step(optimizer)
    assert found == [set(), set(names[1:]), set(names[:1]), set(), set(names[2:])]


class OwnStep(MultiHead):
    """A user's own training step."""

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Any:
        return torch.stack(list(self.task_losses(batch).values())).sum()


class TwoOptimizers(OwnStep):
    """Manual optimization: the backbone steps after each batch, the heads after every second one or each."""

    def __init__(self, backbone: nn.Module, every: int = 1, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.every, self.automatic_optimization = every, False

    def configure_optimizers(self) -> Any:
        return [self.optimizer(part.parameters()) for part in (self.backbone, self.heads)]

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Any:
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer, every in zip(cast("list[Any]", self.optimizers()), (1, self.every), strict=True):
            if (batch_idx + 1) % every == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)  # a zero gradient moves weights by momentum


@pytest.mark.parametrize(("method", "optimizers"), [(OwnStep, 1), (TwoOptimizers, 2)])
def test_a_training_step_of_a_users_own_trains_every_weight(method: Any, optimizers: int) -> None:
    given = data(tasks_per_batch=2)
    own, ours = train(method, given, 4 * optimizers), train(MultiHead, given, 4)  # the steps of all optimizers count
    for (name, weight), (_, expected) in zip(own.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(weight, expected), name


class Repeated(MultiHead):
    """Manual optimization: two steps on each batch."""

    def __init__(self, backbone: nn.Module, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.automatic_optimization = False

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


class TwoClosures(torch.optim.SGD):
    """Computes the gradients of each step twice, as SAM and LBFGS do."""

    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step(closure)


def test_a_second_step_on_a_batch_trains_the_heads() -> None:
    sgd, given = partial(torch.optim.SGD, lr=0.1), data(tasks_per_batch=2, batch_size=200)
    once, twice = train(MultiHead, given, 1, optimizer=sgd), train(Repeated, given, 2, optimizer=sgd)
    for i, name in enumerate(once.names):
        present = name in given.train_batches().ids(0)
        assert _differ(once.heads[i], twice.heads[i]) == present, name


def test_an_optimizer_that_computes_gradients_twice_trains_the_heads() -> None:
    given = data(tasks_per_batch=2)
    one, two = (train(MultiHead, given, 4, optimizer=partial(c, lr=0.1)) for c in (torch.optim.SGD, TwoClosures))
    for (name, weight), (_, expected) in zip(two.named_parameters(), one.named_parameters(), strict=True):
        assert torch.equal(weight, expected), name


def test_an_optimizer_that_steps_less_often_loses_no_gradients() -> None:
    given = data(tasks_per_batch=1)
    start, end = (train(partial(TwoOptimizers, every=2), given, steps) for steps in (1, 3))  # 3: backbone, both
    moved = {n for n, a, b in zip(start.names, start.heads, end.heads, strict=True) if _differ(a, b)}
    assert moved == {name for number in (0, 1) for name in given.train_batches().ids(number)}
    assert len(moved) == 2


def _differ(one: nn.Module, other: nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_backbone_sees_a_shared_input_once() -> None:
    x = torch.randn(40, 4)
    columns = {"a": x[:, :1] * 2, "b": (x[:, 1] > 0).long()}
    there = {"a": torch.ones(40, dtype=torch.bool), "b": torch.arange(40) % 4 != 0}
    sets = {split: TaskSet.of_columns(x, columns, there) for split in SPLITS}
    given = MultiTaskDataModule(Given({"a": Regression(1), "b": Classification(2)}, sets), batch_size=10)
    seen: list[int] = []
    module = train(MultiHead, given, 8)
    module.backbone.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    logged = results_of(module, given)
    assert sum(seen) == 3 * 40  # test, validation and the training subset
    assert {row["task"]: row["test_examples"] for row in module.test_report["per_task"]} == {"a": 40, "b": 30}
    assert set(logged) >= {"test/r2/a", "test/accuracy/b"}


def test_tasks_whose_inputs_differ_in_shape_get_a_stem_each() -> None:
    wide, narrow = torch.randn(30, 6), torch.randn(30, 2)
    tasks = {"wide": Classification(2), "narrow": Regression(1)}
    of = {"wide": Examples(wide, (wide[:, 0] > 0).long()), "narrow": Examples(narrow, narrow[:, :1])}
    given = MultiTaskDataModule(Given(tasks, {split: TaskSet.of_examples(of) for split in SPLITS}), batch_size=8)
    stems = {"wide": nn.Linear(6, 4), "narrow": nn.Linear(2, 4)}
    for method in (MultiHead, Conditioned, Independent):
        module = train(method, given, 200, stems=copy.deepcopy(stems))
        assert results_of(module, given)["test/score"] > 0.7
    with pytest.raises(
        UserError, match=r"stems: inputs of 'wide' are \(6,\), of 'narrow' \(2,\); give each task a stem"
    ):
        train(MultiHead, given)
    with pytest.raises(UserError, match="stems: expected one for each task, wide, narrow; got"):
        train(MultiHead, given, stems={"wide": nn.Linear(6, 4)})
    with pytest.raises(UserError, match=r"stems.narrow: Linear does not take inputs of shape \(2,\)"):
        train(MultiHead, given, stems={"wide": nn.Linear(6, 4), "narrow": nn.Linear(3, 4)})


@pytest.mark.parametrize("weighting", [Uncertainty, DynamicWeightAverage, RandomWeights])
def test_weightings_train_and_are_logged(weighting: Any, tmp_path: Path) -> None:
    from lightning_meta.run import RunLogger

    given = data()
    logger = RunLogger(tmp_path, "w")
    module = train(MultiHead, given, 30, weighting=weighting(), trainer={"logger": logger, "log_every_n_steps": 5})
    text = (tmp_path / "w" / "0" / "metrics.csv").read_text()
    assert "train/weight/sum" in text.splitlines()[0]
    if weighting is Uncertainty:
        groups = module.optimizers().param_groups  # type: ignore[union-attr]
        assert [len(g["params"]) for g in groups][-1] == 1
        assert groups[-1]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": partial(MultiHead, shared_depth=3)},
            "shared_depth: MLP has 2 stages, so a number from 0 to 2; got 3",
        ),
        ({"method": partial(Conditioned, at=(5,))}, "at: MLP has 2 stages"),
        ({"method": partial(Conditioned, at=())}, "at: expected one or more distinct positions"),
        (
            {"method": Conditioned, "enters": "sum"},
            "enters: expected 'concatenate' or 'add' or 'film' or 'gate', got 'sum'",
        ),
        ({"method": partial(Conditioned, descriptor="given")}, "descriptor: the data has no descriptor of 'sum'"),
        ({"method": partial(CrossStitch, own=2.0)}, "own: expected a number from 0 to 1, got 2.0"),
        ({"method": partial(MixtureOfExperts, experts=0)}, "experts: at least 1 is needed, got 0"),
        ({"method": MultiHead, "backbone": MLP(5, (3,))}, r"backbone: MLP does not take inputs of shape \(4,\)"),
        ({"method": MultiHead, "backbone": Conv4()}, r"backbone: Conv4 does not take inputs of shape \(4,\)"),
        ({"method": Independent, "strategy": "all"}, "strategy: expected 'auto' or 'vmap' or 'loop', got 'all'"),
        ({"method": Independent, "weighting": Uncertainty()}, "weighting: .* shares nothing.*got Uncertainty"),
    ],
)
def test_mistakes_end_before_training_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(options.pop("method"), data(), **options)


def test_other_tasks_than_it_was_made_for_are_refused() -> None:
    module = train(MultiHead, data(), 3)
    with pytest.raises(UserError, match=r"the module was made for others: the data lacks \['sign'\]"):
        results_of(module, data(("sum", "largest")))
    with pytest.raises(UserError, match="the order differs"):
        results_of(module, data(("sign", "sum", "largest")))
    other = Given({**TASKS, "sign": Classification(4)}, Toys().sets())
    with pytest.raises(
        UserError, match="task 'sign': the module was made for Classification of 2 outputs, the data has"
    ):
        results_of(module, MultiTaskDataModule(other))
    episodic = lightning_meta.EpisodicDataModule
    sinusoid = lightning_meta.sources.Sinusoid()
    with pytest.raises(UserError, match="MultiHead learns from a MultiTaskDataModule; the data has episodes"):
        results_of(module, cast(MultiTaskDataModule, episodic(sinusoid)))


def test_a_task_without_validation_labels_is_left_out_of_the_mean(tmp_path: Path) -> None:
    """The task is still trained and tested; its unknown scores are NaN, and empty or null in the files."""
    from lightning_meta.run import RunLogger

    sets = Toys().sets()
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = {**sets["val"].targets, "sign": nothing}
    sets["val"] = TaskSet(sets["val"].inputs, targets, {**sets["val"].rows, "sign": nothing})
    given = MultiTaskDataModule(Given(TASKS, sets), batch_size=8, batches_per_epoch=5)
    options = {"logger": RunLogger(tmp_path, "n")}
    for method in (MultiHead, Independent):
        module = train(method, given, 150, trainer=options)
        logged = results_of(module, given)
        assert logged["test/accuracy/sign"] > 0.75  # it is tested with the last weights
        rows = {row["task"]: row for row in module.test_report["per_task"]}
        assert rows["sign"]["best_step"] == -1
        assert rows["sign"]["val"] != rows["sign"]["val"]
        known = [module.best.scores[i] for i in (0, 1)]
        assert all(score > -10 for score in known)
        assert module.best.scores[2] == -float("inf")
    assert module.trainer.callback_metrics["test/score"] == module.trainer.callback_metrics["test/score"]


def test_a_task_of_one_class_has_no_auroc_and_the_mean_says_over_how_many_tasks() -> None:
    x = torch.randn(3, 40, 4)
    y = {"first": (x[..., 0] > 0).long(), "second": (x[..., 1] > 0).long(), "same": (x[..., 2] > 0).long()}
    y["same"][1:] = 1  # in validation and testing
    tasks = {name: Binary("auroc") for name in y}
    mask = {name: torch.ones(40, dtype=torch.bool) for name in y}
    sets = {s: TaskSet.of_columns(x[i], {n: of[i] for n, of in y.items()}, mask) for i, s in enumerate(SPLITS)}
    given = MultiTaskDataModule(Given(tasks, sets), batch_size=20)
    for method in (MultiHead, Independent):
        module = train(method, given, 40)
        (logged,) = trainer().validate(module, datamodule=given, verbose=False)
        assert math.isnan(logged["val/auroc/same"])
        assert logged["val/auroc_tasks"] == 2
        assert logged["val/accuracy_tasks"] == 3
        mean = (logged["val/auroc/first"] + logged["val/auroc/second"]) / 2
        assert logged["val/auroc"] == logged["val/score"] == pytest.approx(mean)
        assert min(module.best.steps) > 0, "a task without a score follows its loss"
        assert module.best.scores[2] == -math.inf


def test_early_stopping_follows_the_mean_and_independent_each_task() -> None:
    stop = lightning.pytorch.callbacks.EarlyStopping("val/score", mode="max", patience=2)
    module = train(MultiHead, data(), 2000, trainer={"callbacks": [stop]})
    assert 15 < module.trainer.global_step < 2000
    stop = lightning.pytorch.callbacks.EarlyStopping("val/score", mode="max", patience=2)
    seen: list[float] = []

    class Scores(lightning.pytorch.Callback):
        def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["val/score"]))

    train(Independent, data(), 2000, trainer={"callbacks": [stop, Scores()]})
    # It goes on for as long as any task has bettered its score in the last two validations.
    assert seen[-1] == seen[-2] == seen[-3] > seen[-4]


@every_method
def test_a_loaded_model_predicts_for_new_inputs(method: Any, tmp_path: Path) -> None:
    given = data()
    lightning.seed_everything(3, verbose=False)
    module = method(backbone(), optimizer=partial(torch.optim.Adam, lr=0.01))
    runner = trainer(150)
    runner.fit(module, datamodule=given)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = lightning_meta.load(tmp_path / "a.ckpt")
    logged = results_of(module, given)
    examples = Toys().examples("test")
    right = loaded.predict("largest", examples["largest"].x).argmax(-1) == examples["largest"].y
    assert float(right.double().mean()) == pytest.approx(logged["test/accuracy/largest"], abs=1e-6)
    off = (loaded.predict("sum", examples["sum"].x) - examples["sum"].y).abs().mean()
    assert float(off) == pytest.approx(logged["test/mae/sum"], rel=1e-5)
    with pytest.raises(UserError, match="there is no task 'sun'; expected 'sum', 'largest', 'sign'"):
        loaded.predict("sun", examples["sum"].x)
    with pytest.raises(UserError, match=r"inputs of shape \(M, 4\) are needed, got \(30, 3\)"):
        loaded.predict("sum", examples["sum"].x[:, :3])


@pytest.mark.parametrize("method", [MultiHead, Independent, partial(Conditioned, enters="film", at=(1,))])
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_normalisation_is_that_of_the_batch_in_all_of_training(method: Any, strategy: str) -> None:
    """This also holds after validations, after which Lightning does not call `train`."""
    options: dict[str, Any] = {"strategy": strategy} if method is Independent else {}
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    moved: list[bool] = []
    used: list[Any] = []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self.before = [b.clone() for name, b in module.named_buffers() if name.endswith(".mean")]

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            after = [b for name, b in module.named_buffers() if name.endswith(".mean")]
            moved.append(all(not torch.equal(a, b) for a, b in zip(self.before, after, strict=True)))

        def on_validation_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            used.append([b.clone() for name, b in module.named_buffers() if name.endswith(".mean")])

        def on_validation_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            after = [b for name, b in module.named_buffers() if name.endswith(".mean")]
            used.append(all(torch.equal(a, b) for a, b in zip(used.pop(), after, strict=True)))

    train(method, data(), 15, backbone=network, trainer={"callbacks": [Watch()]}, **options)
    assert moved == [True] * 15
    assert used == [True] * 3


def test_a_task_without_test_examples_is_reported_as_unknown(tmp_path: Path) -> None:
    sets = Toys().sets()
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = {**sets["test"].targets, "sum": torch.zeros(0, 1)}
    sets["test"] = TaskSet(sets["test"].inputs, targets, {**sets["test"].rows, "sum": nothing})
    given = MultiTaskDataModule(Given(TASKS, sets), batch_size=8, batches_per_epoch=5)
    module = train(MultiHead, given, 5)
    logged = results_of(module, given)
    assert logged["test/score"] == pytest.approx(logged["test/accuracy"])
    predictions = module.test_report["predictions"]
    assert set(predictions["task"]) == {1, 2}
    assert predictions["target"].shape == (44, 1)


def test_a_row_of_the_log_holds_the_tasks_of_its_batch_alone(tmp_path: Path) -> None:
    from lightning_meta.run import RunLogger

    given = data(tasks_per_batch=1, batches_per_epoch=12)
    options = {"logger": RunLogger(tmp_path, "r"), "log_every_n_steps": 1}
    train(MultiHead, given, 12, trainer=options)
    with (tmp_path / "r" / "0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    batches = given.train_batches()
    for number, row in enumerate(rows):
        assert {name for name in NAMES if row[f"train/loss/{name}"]} == set(batches.ids(number))
    assert len(rows) == 12


class Restless(nn.Module):
    """A layer that counts its passes, and draws random numbers in evaluation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("passes").add_(1)
        return nn.functional.dropout(self.linear(x), 0.2)


@pytest.mark.parametrize("method", [MultiHead, Conditioned, MixtureOfExperts, Independent])
def test_evaluation_leaves_buffers_and_the_random_state_of_any_network(method: Any) -> None:
    module = train(method, data(), 2, backbone=nn.Sequential(Restless()))
    before = {name: t.clone() for name, t in [*module.named_parameters(), *module.named_buffers()]}
    assert any(float(t) > 0 for name, t in before.items() if name.endswith("passes"))
    random = torch.get_rng_state()
    runner = trainer(precision="64-true")
    runner.validate(module, datamodule=data(), verbose=False)
    runner.test(module, datamodule=data(), verbose=False)
    runner.predict(module, datamodule=data())
    module.predict("largest", torch.zeros(3, 4))
    assert torch.equal(random, torch.get_rng_state())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_a_wrong_shape_are_refused(name: str) -> None:
    """The squared error of `(n,)` and `(n, 1)` is that of all pairs; cross-entropy takes outputs of no class."""

    class Wrong(MultiHead):
        def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
            outputs = super().forward(x, rows)
            wrong = outputs[name][:, 0] if name == "sum" else nn.functional.pad(outputs[name], (0, 2))
            return {**outputs, name: wrong}

    with pytest.raises(UserError, match=rf"Wrong.forward returned \(.*\) for task '{name}'; expected \(8, "):
        trainer(1).fit(Wrong(backbone()), datamodule=data())


@pytest.mark.parametrize("change", [lambda o: o.popitem() and o, lambda o: {**o, "other": None}, list, lambda o: None])
def test_outputs_of_other_tasks_are_refused(change: Callable[[dict[str, Tensor]], Any]) -> None:
    """A task without outputs would never be trained."""

    class Wrong(MultiHead):
        def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return change(super().forward(x, rows))

    with pytest.raises(UserError, match=r"Wrong.forward returned .*; expected the outputs of each task of the batch"):
        trainer(1).fit(Wrong(backbone()), datamodule=data())
