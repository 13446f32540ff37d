"""What tests and benchmarks share: sites, servers, clients, rows, and what is fuzzed."""
