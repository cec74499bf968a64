"""Tables to tables. One file is one stage."""
