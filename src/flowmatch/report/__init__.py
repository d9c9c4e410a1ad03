"""A run as one self-contained HTML page: samples, numbers with their protocols, curves, cost."""

from flowmatch.report.page import write_report as write_report
