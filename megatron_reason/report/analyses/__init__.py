"""One file is one analysis: importable functions, and what `mreason analyse NAME` draws."""
