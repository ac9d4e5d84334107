"""Measuring throughput: workloads, contestants, races in interleaved rounds, and their reports."""
