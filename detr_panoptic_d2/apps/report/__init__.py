"""The report of a run: one HTML page of what a training or an evaluation left in its folder."""

from .run_report import write_report

__all__ = ["write_report"]
