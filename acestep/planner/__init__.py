"""The 5 Hz language model, which plans metadata and audio codes for the renderer."""
