"""One service's life: startup, serve, drain, shutdown."""
