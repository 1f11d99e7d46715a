"""Models with seeded random weights: the real architecture and cost, without a download."""
