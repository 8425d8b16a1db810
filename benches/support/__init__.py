"""What the benchmarks share: processes, load, results. Only the standard library."""
