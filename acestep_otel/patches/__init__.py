"""What gets wrapped, one module per library: each lists its seams as data."""
