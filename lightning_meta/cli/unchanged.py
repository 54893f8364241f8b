"""Check that the data of finished runs, whose results are used again, have not changed since."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from lightning_meta.cli.helping import Parser
from lightning_meta.data.module import SourceDataModule
from lightning_meta.errors import UserError, reason_of
from lightning_meta.report.transfer.reading import read_results
from lightning_meta.silence import silence

_log = logging.getLogger(__name__)


class UnchangedData:
    """Compares the `data_fingerprint` of finished runs with that of the data as they are now, read once at most."""

    def __init__(self) -> None:
        self._fingerprints: dict[str, str | None] = {}

    def check(self, data: Callable[[], Any], finished: Iterable[Path], advice: str) -> bool:
        """Refuse finished runs on other data; a warning is logged if the data cannot be read.

        Args:
            data: Returns the configuration of the data, the same for all runs.
            finished: Directories of finished runs.
            advice: What to do, such as "give the ladder another --name"; `{run}` in it becomes the directory.

        Returns:
            False if the data cannot be read.

        Raises:
            UserError: The data have changed since a run.
        """
        stored = {run: read_results(run).get("data_fingerprint") for run in finished}
        stored = {run: fingerprint for run, fingerprint in stored.items() if fingerprint}  # custom data have none
        try:
            now = self._fingerprint(data()) if stored else None
        except Exception as error:  # such as a file that is gone, or anything that a user's source raises
            why = reason_of(error)
            _log.warning("data: it cannot be checked that they are unchanged since %s (%s)", next(iter(stored)), why)
            return False
        if changed := next((run for run, fingerprint in stored.items() if now != fingerprint), None):
            raise UserError(
                f"data: they have changed since {changed} was trained on them; {advice.format(run=changed)}"
            )
        return True

    def _fingerprint(self, data: Any) -> str | None:
        key = json.dumps(data, sort_keys=True, default=str)
        if key not in self._fingerprints:
            parser = Parser(exit_on_error=False)
            parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=True)
            with silence("lightning_meta"):  # the runs log the messages about the data
                module = parser.instantiate(parser.parse_object({"data": data})).data
                self._fingerprints[key] = module.fingerprint() if isinstance(module, SourceDataModule) else None
        return self._fingerprints[key]
