"""To try and to measure: the demo, the benchmarks and the rehearsal, on servers and data of their own."""
