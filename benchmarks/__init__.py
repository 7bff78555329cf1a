"""Side-by-side measurement of this server and a peer: `python -m benchmarks --help`."""
