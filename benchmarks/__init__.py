"""Speed against what else does the same job, one command each: `python -m benchmarks.prepare`."""
