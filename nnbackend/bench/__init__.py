"""Measure throughput: workloads, contestants, races, and reports. Begin with ``race.py``."""
