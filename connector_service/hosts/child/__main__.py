"""Runs one child of a process host: the parent starts this folder with the host's interpreter."""

# Only this folder is on the path when it runs.
from connector_host.start import main  # type: ignore[import-not-found]

main()
