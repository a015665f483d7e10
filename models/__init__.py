"""Real model topologies with seeded weights, for the demo, the tests and the benchmarks."""
