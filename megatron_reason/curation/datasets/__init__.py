"""The public data sets of the papers, one file each: where they lie, their columns and filters."""
