"""A self-contained HTML page from finished spans. Python computes, the templates render; nothing here measures."""

from acestep_otel.profiler.report.html.page import Report, render_report, write_report

__all__ = ["Report", "render_report", "write_report"]
