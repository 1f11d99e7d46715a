"""One measured run: models, request, warm-up, measurement, and the profile mode."""
