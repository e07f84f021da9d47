"""YAML files that people write: model entries, registries, and errors that name the line."""
