"""Runs one child of a process host: the parent starts this folder with the host's interpreter."""

from connector_host.start import main

main()
