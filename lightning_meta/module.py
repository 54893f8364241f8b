"""What every module that is trained here shares: its optimiser, its checkpoints, its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_meta.configuration import Described, describe
from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.functional.ranks import world_size
from lightning_meta.nn.features import Inputs, as_input


class TrainedModule(Described, LightningModule):
    """A LightningModule whose checkpoints load by their path alone.

    Args:
        optimizer: Makes the optimiser of the parameters.
        lr_scheduler: Makes the schedule of the optimiser; it steps once per training step.
    """

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None) -> None:
        super().__init__()
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self._bad_loss = 0.0  # of this rank, since the last step; NaN or infinite

    def parameter_groups(self) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        """What the optimiser is given."""
        return self.parameters()

    def inputs(self, x: Inputs) -> Inputs:
        """Stored examples as the network takes them: uint8 images become numbers in [0, 1]."""
        assert isinstance(self.dtype, torch.dtype)
        return as_input(x, self.dtype)

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule that steps with it."""
        try:
            optimizer = self.optimizer(self.parameter_groups())
            if self.lr_scheduler is None:
                return optimizer
            scheduler = {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer, lr_scheduler: {error}") from error
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store how the module was made, so that it loads by path alone."""
        checkpoint["lightning_meta"] = describe(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's precision before its weights, which Lightning would round to that of a new module."""
        weights = checkpoint["state_dict"]
        for name, parameter in self.named_parameters():
            if name in weights and weights[name].dtype != parameter.dtype:
                self.to(weights[name].dtype)
                break

    def check_finite(self, loss: Tensor) -> None:
        """Stop training where its loss is not finite; with several ranks, all of them after the backward pass.

        Raises:
            NonFiniteLossError: The loss and the step.
        """
        if torch.isfinite(loss):
            return
        if world_size() == 1:
            raise NonFiniteLossError(f"the training loss became {loss.item()} at step {self.global_step}")
        self._bad_loss = loss.item()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, unless the loss of some rank was not finite.

        Raises:
            NonFiniteLossError: The loss, its rank and the step, on every rank.
        """

        def checked() -> Any:
            result = optimizer_closure() if optimizer_closure else None
            self._compare_losses()
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, checked if world_size() > 1 else optimizer_closure)

    def _compare_losses(self) -> None:
        """Ask all ranks, whatever gradients this one has: some may be its own alone, or sparse, or none."""
        losses = torch.zeros(world_size(), device=self.device)
        losses[torch.distributed.get_rank()] = self._bad_loss
        torch.distributed.all_reduce(losses)
        for rank, loss in enumerate(losses.tolist()):
            if loss:
                error = NonFiniteLossError(f"the training loss of rank {rank} became {loss} at step {self.global_step}")
                error.on_all_ranks = True
                raise error

    def logs_this_step(self) -> bool:
        """Whether the loggers write this training step. Logging costs more than a small model's step."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0
