"""A run as one HTML page without external resources: ``write_report``, ``python -m train.report run_dir=DIR``."""

from train.report.sections import write_report

__all__ = ["write_report"]
