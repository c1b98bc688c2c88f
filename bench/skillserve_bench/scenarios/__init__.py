"""One question per module; each returns `skillserve_bench.report.Findings`, latency what they are made of."""
