"""The modes that use the language model alone: understand, create_sample, format_sample."""
