"""Metric sinks: one file each, all fed with the same flat name -> value mapping."""
