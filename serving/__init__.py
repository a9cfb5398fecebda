"""HTTP API, composition of engine, power and carbon, and the `gridserve` command."""
