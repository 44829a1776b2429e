"""Sources of connectors, loaded into a registry."""
