"""The benchmark mode and the comparison of two result files."""
