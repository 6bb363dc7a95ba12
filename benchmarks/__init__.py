"""Measurements that anybody can repeat: ``python -m benchmarks --help``. Nothing here is asserted."""
