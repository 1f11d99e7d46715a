"""How much work a stage is, what its device can do at most, and which share of that the stage reached."""
