"""The profiler: command line, modes, reports, SDK set-up and doctor, grouped by feature.

Private: the command ``acestep-otel`` and its files are the interface. Nothing outside this folder imports it.
"""
