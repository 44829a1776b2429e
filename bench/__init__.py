"""Measures the service beside its peers and beside a floor that no Python server goes below."""
