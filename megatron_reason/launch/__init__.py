"""Starting processes: on this machine, on a cluster. No torch here."""
