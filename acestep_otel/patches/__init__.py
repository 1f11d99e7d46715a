"""The patched functions, one module per library: each lists its patches as data."""
