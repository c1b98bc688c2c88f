"""skillserve: find the right agent skill for a request, on NVIDIA Triton, without padding.

This package is what all rooms agree on: records, text formats, tensor names, the model card, errors,
configuration and the command table. It needs neither torch nor a server.
"""

from importlib.metadata import version

from skillserve.card import ModelCard
from skillserve.errors import SkillserveError
from skillserve.records import Answer, Hit, Query, Skill

__all__ = ["Answer", "Hit", "ModelCard", "Query", "Skill", "SkillserveError", "__version__"]

__version__ = version("skillserve")
