"""Batch scoring: files in, shards out, through a server or in this process; a killed run goes on where it was.

    sources → items → shards → tokens ahead → engine → shard file, receipt → manifest

Everything is cut by input position and named by what it was computed from, so that nothing is computed twice, and
nothing of another input, model or option is taken for it.
"""
