"""The transfer report: for each task, whether sharing helped, hurt, or made no difference that the data can show.

Runs are read (`reading`) and matched (`matching`), their differences get intervals (`intervals`), `comparison` makes of
them the report (`results`), and `writing` shows it.
"""

from lightning_meta.report.transfer.comparison import compare
from lightning_meta.report.transfer.results import MethodTransfer, TaskTransfer, TransferReport
from lightning_meta.report.transfer.writing import print_report, write_report

__all__ = ["MethodTransfer", "TaskTransfer", "TransferReport", "compare", "print_report", "write_report"]
