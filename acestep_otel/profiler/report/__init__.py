"""Tables and JSON from finished spans. Nothing here measures; every value is a function of spans."""
