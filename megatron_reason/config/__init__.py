"""What may be asked for: typed, strict, frozen sections of a YAML file. No torch here."""
