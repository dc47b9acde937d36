"""Find what is wrong with a data set in COCO panoptic format before training does."""

from .findings import KINDS, Finding
from .report import class_table, findings_table, plot_classes, write_findings
from .run import DatasetPaths, Report, check_dataset, duplicates_between, fix_dataset

__all__ = [
    "KINDS",
    "DatasetPaths",
    "Finding",
    "Report",
    "check_dataset",
    "class_table",
    "duplicates_between",
    "findings_table",
    "fix_dataset",
    "plot_classes",
    "write_findings",
]
