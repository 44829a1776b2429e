"""Flyte's protocols on one side, calls and outcomes on the other."""
