"""The words a person types. Each verb validates, calls one function of a room below, and prints."""
