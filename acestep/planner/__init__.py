"""The 5 Hz language model's side: it plans metadata and audio codes for the renderer."""
