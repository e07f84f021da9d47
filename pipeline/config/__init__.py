"""What people write in YAML: model entries, registries, and errors that name the line."""
