"""The subcommand ``doctor``: sends one span and one metric and reports where they arrived."""
