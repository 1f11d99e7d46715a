"""The work of a stage, the peaks of its device, and the share of them that the stage reached."""
