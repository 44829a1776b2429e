"""Logs, metrics and health for people and machines; it listens, the core never waits for it."""
