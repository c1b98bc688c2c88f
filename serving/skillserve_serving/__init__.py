"""From a model repository to a running Triton that answers, and is kept answering.

Importing this package loads neither a server nor ONNX Runtime: Triton's stub imports it too, for `ragged`.
"""
