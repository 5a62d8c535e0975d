"""Measurements, each printing one JSON object as its last line: `python -m benchmarks.NAME [--json]`."""
