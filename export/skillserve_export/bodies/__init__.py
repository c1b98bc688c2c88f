"""The bodies of the packed operations, as ONNX functions of opset 17; `cores` says when each is used.

onnxscript compiles the source of these functions, they are never run as Python. Its subset of the language knows
ONNX's operators only, hence the explicit constants, and types that mypy cannot follow (excepted in pyproject.toml).
"""

from onnxscript.values import Opset

__all__ = ["DOMAIN", "OPSET", "domain"]

DOMAIN = "skillserve"
OPSET = 17
"""The newest operator set that every ONNX Runtime since Triton 24.10 reads, at IR version 8."""

domain = Opset(DOMAIN, 1)
