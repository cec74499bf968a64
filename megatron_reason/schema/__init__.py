"""The nouns: everything that flows between rooms, and the contract of a method."""
