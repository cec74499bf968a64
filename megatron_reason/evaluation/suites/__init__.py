"""One file is one paper's protocol."""
