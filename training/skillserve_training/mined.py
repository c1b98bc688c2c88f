"""STUB"""

from dataclasses import dataclass
from typing import Any


@dataclass
class Mined:
    negatives: Any
    digest: str = ""

    def of(self, data): ...


def read_mined(path, data): ...
