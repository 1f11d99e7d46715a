"""The OpenTelemetry SDK of the command line: providers, exporters, trace file, instrumentation of one run."""
