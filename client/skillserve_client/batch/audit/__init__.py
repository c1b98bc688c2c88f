"""Catalogue audits: what a catalogue looks like to the embedder that searches it.

vectors, catalogue → neighbours → duplicates, hubs → tables, summary, manifest
taxonomy → vectors of categories → categories ↗
"""
