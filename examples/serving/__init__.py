"""A music service in front of the engine: bounded queue, one worker, progress, cancellation, and traces of it all."""
