"""The progress of a run: a bar on a terminal, lines in a file."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.console import Console

PERIOD = 30.0  # seconds between two lines
NEW_METRICS = 0.5  # seconds between two updates of the bar's metrics


def progress_bar() -> ProgressBar:
    """A bar if the output is a terminal or a notebook; lines if it is a file or a pipe."""
    console = Console()
    return Bar() if console.is_terminal or console.is_jupyter else Lines()


class Bar(RichProgressBar):
    """Lightning's progress bar without the version number of the run, which the summary shows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._metrics: dict[str, Any] = {}
        self._read = -math.inf

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics next to the bar, read at most twice a second, since reading them waits for the GPU."""
        now = time.monotonic()
        if now - self._read > NEW_METRICS or not trainer.training:
            self._metrics, self._read = super().get_metrics(trainer, pl_module), now
            self._metrics.pop("v_num", None)
        return dict(self._metrics)

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning shows "/-2" as the number of epochs if only steps are limited.
        return super()._get_train_description(current_epoch).replace("/-2", "")


class Lines(ProgressBar):
    """A line every half minute: the step, the metrics of the progress bar, and the estimated remaining time."""

    def __init__(self) -> None:
        super().__init__()
        self._on = True
        self._first_step = 0
        self._began = self._said = self._first_batch = time.monotonic()

    def enable(self) -> None:
        """Print from now on."""
        self._on = True

    def disable(self) -> None:
        """Stop printing; Lightning calls this on all ranks except the first."""
        self._on = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a resumed run counts from the step at which it was resumed."""
        self._began, self._first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print the step, and the remaining time if the last step is known."""
        if not self._is_time():
            return
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        has_end = 0 < total < math.inf  # -1 or inf if the loader has no length and no option limits training
        parts = [f"step {step}" + (f" of {total:.0f}" if has_end else "")]
        parts += [f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items()]
        if has_end and step > self._first_step:
            left = (time.monotonic() - self._began) / (step - self._first_step) * (total - step)
            parts.append(f"about {in_words(left)} left")
        print(", ".join(parts), flush=True)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print the progress of validation."""
        self._say_share("validation", batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print the progress of testing."""
        self._say_share("test", batch_idx, trainer.num_test_batches[dataloader_idx])

    def _say_share(self, stage: str, batch: int, total: float) -> None:
        now = time.monotonic()
        if batch == 0:
            self._first_batch = now
        if not self._is_time():
            return
        line = f"{stage}, batch {batch + 1}"
        if math.isfinite(total):
            line += f" of {total:.0f}"
            if batch:
                left = (now - self._first_batch) / batch * (total - batch - 1)
                line += f", about {in_words(left)} left"
        print(line, flush=True)

    def _is_time(self) -> bool:
        """Whether to print a line now; if so, the next one is due after `PERIOD`."""
        now = time.monotonic()
        if not self._on or now - self._said < PERIOD:
            return False
        self._said = now
        return True


def in_words(seconds: float) -> str:
    """A rounded duration: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
