"""Forced tracing: a header by which a caller has one request traced at any sampling ratio."""
