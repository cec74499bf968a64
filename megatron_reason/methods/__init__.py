"""What to learn. One file is one method: declared terms and a pure function. No ranks, no files."""
