"""What gets wrapped, one module per library: each lists its patches as data."""
