"""YAML jobs that ship with the package."""
