"""One file, one model family: its class, its shape and its parameter table."""
