"""Finished spans -> one self-contained HTML page. Python computes, the templates draw; nothing here measures."""

from acestep_otel.profiler.report.html.page import Report, render_report, write_report

__all__ = ["Report", "render_report", "write_report"]
