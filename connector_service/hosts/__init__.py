"""Where connectors run: in this process, in a child process, or behind another service."""
