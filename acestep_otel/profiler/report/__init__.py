"""From finished spans to tables and JSON. Nothing in here measures; everything is a function of spans."""
