"""Measures, counts and reads what profiles and workloads hold."""

DISTRIBUTION = "simgd"
