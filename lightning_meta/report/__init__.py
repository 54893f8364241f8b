"""What a person looks at after a run."""

from lightning_meta.report.figures import write_figures

__all__ = ["write_figures"]
