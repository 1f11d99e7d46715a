"""A music service in front of the engine: bounded queue, workers, progress, cancellation, and a trace per request."""
