"""Tests of a meta-learner."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.batches import Episode, Examples
from lightning_meta.data import EpisodicDataModule
from lightning_meta.functional import TaskMap, outside_inference_mode
from lightning_meta.meta import MetaModule
from lightning_meta.nn.normalization import hold_in_evaluation, task_norms
from lightning_meta.testing import toys
from lightning_meta.testing.comparing import differing, named_tensors, relative_error
from lightning_meta.testing.trained_module import TrainedModuleTests

WAYS = {"loop": TaskMap("loop"), "vmap": TaskMap("vmap"), "chunks of vmap": TaskMap("vmap", 2)}


class MetaModuleTests(TrainedModuleTests):
    """Subclass it, and return the `MetaModule` to test from `make`.

    Override `make_data` if the method does not learn from 3-way episodes of grey images of 16x16 pixels.
    """

    unused: tuple[str, ...] = ()
    """Prefixes of the names of parameters on which the loss of a meta-batch does not depend."""

    task_tolerance = 1e-9
    """Largest relative error in float64 between the loop, `vmap` and chunks, and between orders of examples."""

    def make_data(self) -> EpisodicDataModule:
        """3-way 2-shot episodes of grey images, 16x16."""
        return toys.pictures()

    def ready(self, dtype: torch.dtype = torch.float64) -> tuple[MetaModule, Episode]:
        """The configured module in training mode, and a meta-batch."""
        data = self.make_data()
        data.prepare_data()
        data.setup("fit")
        module = self.made()
        assert isinstance(module, MetaModule), f"make() returned a {type(module).__name__}; expected a MetaModule"
        if module.episodes is None:
            module.episodes = data.spec
        module.configure_model()
        module.to(dtype)
        count = data.meta_batch_size
        return module.train(), module.inputs(data.datasets["train"].__getitems__(range(count)))

    def test_adapting_changes_nothing(self) -> None:
        """`adapt` and `predict` leave parameters, buffers and random state as they were, in inference mode too."""
        module, batch = self.ready()
        module.eval()
        before, random = named_tensors(module), torch.get_rng_state()
        with torch.inference_mode():
            outputs = outside_inference_mode(self.first_predicted, module, batch)
        assert torch.isfinite(outputs).all(), (
            "some predictions of a new module are infinite or NaN; expected finite ones"
        )
        changed = differing(before, named_tensors(module))
        assert not changed, (
            f"adapt or predict changed {changed}; expected the module to stay as it was: adapt returns what it has "
            "learned"
        )
        same = torch.equal(random, torch.get_rng_state())
        assert same, (
            "adapt or predict drew from torch's global random stream; expected its state to stay as it was, or two "
            "evaluations would differ"
        )

    def test_tasks_do_not_depend_on_how_they_are_visited(self) -> None:
        """The loop, `vmap` and chunks of it give the same losses and outer gradients."""
        found = {name: self.loss_and_gradient(how) for name, how in WAYS.items()}
        for name, (loss, gradient) in found.items():
            errors = [relative_error(loss, found["loop"][0]), relative_error(gradient, found["loop"][1])]
            assert max(errors) < self.task_tolerance, (
                f"with {name}, losses differ from the loop's by {errors[0]:.1e} and outer gradients by "
                f"{errors[1]:.1e}, relatively; expected less than {self.task_tolerance:g}: adapt and predict must "
                "depend on one task alone"
            )

    def test_the_order_of_examples_does_not_matter(self) -> None:
        """Other orders of support and query examples permute the predictions, and change nothing else."""
        module, batch = self.ready()
        module.eval()
        support, query = (Examples(part.x[0], part.y[0]) for part in (batch.support, batch.query))
        outputs = self.predicted(module, support, query.x, batch.ways)
        order = torch.arange(len(query.x) - 1, -1, -1)
        error = relative_error(self.predicted(module, support, query.x[order], batch.ways), outputs[order])
        assert error < self.task_tolerance, (
            f"reversing the query set changes predictions by {error:.1e}, relatively; expected no change"
        )
        order = torch.arange(len(support.x) - 1, -1, -1)
        turned = Examples(support.x[order], support.y[order])
        error = relative_error(self.predicted(module, turned, query.x, batch.ways), outputs)
        assert error < self.task_tolerance, (
            f"reversing the support set changes predictions by {error:.1e}, relatively; expected no change"
        )

    def test_a_prediction_does_not_depend_on_its_company(self) -> None:
        """The prediction of a query does not depend on other queries, unless the method is `transductive`."""
        module, batch = self.ready()
        module.eval()
        support, query = (Examples(part.x[0], part.y[0]) for part in (batch.support, batch.query))
        with torch.no_grad():
            state = module.adapt(support, batch.ways)
            error = relative_error(module.predict(state, query.x[:1]), module.predict(state, query.x)[:1])
        assert module.transductive or error < self.task_tolerance, (
            f"a prediction changes by {error:.1e}, relatively, with the queries beside it; expected no change: "
            "normalise by running statistics or those of the support set, as MetricLearner does, or set the property "
            "`transductive` to True"
        )

    def test_training_and_evaluation_agree_with_adapt_and_predict(self) -> None:
        """`trajectory` ends with the state of `adapt`; without batch statistics, `task_loss` predicts the same."""
        module, batch = self.ready()
        module.eval()
        hold_in_evaluation(module, task_norms(module))
        support, query = (Examples(part.x[0], part.y[0]) for part in (batch.support, batch.query))
        with torch.no_grad():
            outputs = self.predicted(module, support, query.x, batch.ways)
            last = module.predict(module.trajectory(support, batch.ways)[-1], query.x)
            trained = module.task_loss(support, query, batch.ways).outputs
        keep_none = any(norm.running_mean is None for norm in task_norms(module).values())
        for method, found in {"trajectory": last, **({} if keep_none else {"task_loss": trained})}.items():
            error = relative_error(found, outputs)
            assert error < self.task_tolerance, (
                f"the predictions of {method} differ from those of adapt and predict by {error:.1e}, relatively; "
                "expected the same ones in evaluation mode: an override is left out in training or in evaluation"
            )

    def test_every_parameter_learns(self) -> None:
        """The outer loss has a gradient in every parameter that is not declared `unused`."""
        module, batch = self.ready()
        module.meta_batch_loss(batch).loss.mean().backward()
        silent = [
            name
            for name, p in module.named_parameters()
            if p.requires_grad and p.grad is None and not name.startswith(self.unused or ("\0",))
        ]
        assert not silent, (
            f"the outer loss does not depend on {silent}; expected every trained parameter to have a gradient: is "
            "something detached, or never used?"
        )

    def first_predicted(self, module: MetaModule, batch: Episode) -> Tensor:
        """Predictions of the first task, by `adapt` and `predict` themselves."""
        support = Examples(batch.support.x[0], batch.support.y[0])
        with torch.no_grad():
            return self.predicted(module, support, batch.query.x[0], batch.ways)

    def predicted(self, module: MetaModule, support: Examples, x: Tensor, ways: int) -> Tensor:
        """Predictions of one task."""
        return module.predict(module.adapt(support, ways), x).detach()

    def loss_and_gradient(self, how: TaskMap) -> tuple[Tensor, Tensor]:
        """The losses of the tasks of a meta-batch and the gradient of their mean, in float64."""
        module, batch = self.ready()
        module.task_map = how
        torch.manual_seed(1)
        try:
            loss = module.meta_batch_loss(batch).loss
        except RuntimeError as error:
            raise AssertionError(
                f"expected a meta-batch to run with {how}; it failed: {error}: adapt and predict must depend on one "
                "task alone"
            ) from error
        trained = [p for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss.mean(), trained, allow_unused=True)
        return loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None])
