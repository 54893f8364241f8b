"""The transfer report: for each task, whether sharing helped, hurt, or made no difference that the data can show.

Reading runs (`reading`, `matching`), the statistics (`intervals`, `enemies`), what they add up to (`comparison`,
`results`) and how it is shown (`table`, `files`, `figures`, `wandb_tables`) are apart.
"""

from lightning_meta.report.transfer.comparison import compare
from lightning_meta.report.transfer.results import MethodTransfer, TaskTransfer, TransferReport
from lightning_meta.report.transfer.table import print_report
from lightning_meta.report.transfer.writing import write_report

__all__ = ["MethodTransfer", "TaskTransfer", "TransferReport", "compare", "print_report", "write_report"]
