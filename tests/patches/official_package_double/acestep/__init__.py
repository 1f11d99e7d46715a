"""Stands in for the released package ace-step 1.5: its names and the order of its calls, and no model."""
