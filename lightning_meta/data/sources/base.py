"""The path that the contracts of sources had in version 0.1."""

from lightning_meta.data.source import Source, TaskGenerator, TaskSource

__all__ = ["Source", "TaskGenerator", "TaskSource"]
