"""YAML -> plan -> stages -> manifests."""
