"""The program that runs connectors in a child process, with the host's own interpreter."""
