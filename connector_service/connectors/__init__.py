"""The connectors that ship with the service; each is loaded by entry point, like a stranger's."""
