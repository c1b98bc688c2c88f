"""What planning for many skills is made of.

`vectors` to measure with, `trials` of one index each, `field` that carries them out, `embedding` for the rate of the
embedder, `growth` from measured sizes to others, `plan` with the formulas, and the report in `tables`.
"""
