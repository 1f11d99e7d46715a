"""Mode ``tier-test``: what fits on which card, one child process per card and variant."""
