"""Figures and pages from tables and JSON alone. No torch here."""
