"""No skill may be on both sides: a test skill that was trained on makes every figure of the test split a lie.

This is the only look that training takes at the test split, and it is a narrow one: at the skills' ids and digests.
Its requests and judgements have no reader in this room, so nothing can be chosen on them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from skillserve.records import Skill
from skillserve.skillfile import find_split, read_skills

__all__ = ["faults_of_sides", "text_digest", "text_digests_of_test_skills"]


def text_digests_of_test_skills(folder: Path) -> Mapping[str, str]:
    """Skill id → digest of its texts, for the test split; empty if there is none. CatalogueError if it is faulty."""
    source = find_split(folder, "skills", "test")
    return {} if source is None else {skill.id: text_digest(skill) for skill in read_skills(source)}


def text_digest(skill: Skill) -> str:
    """SHA-256 over name, description and body."""
    parts = [part.strip() for part in (skill.name, skill.description, skill.body)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def faults_of_sides(train: Iterable[Skill], test: Mapping[str, str]) -> list[str]:
    """A fault for each train skill whose id or whose texts the test split has too."""
    by_text = {digest: skill for skill, digest in test.items()}
    faults = []
    for skill in train:
        if skill.id in test:
            faults.append(f"skill `{skill.id}` is in the test split too")
        elif twin := by_text.get(text_digest(skill)):
            faults.append(f"skill `{skill.id}` has name, description and body of the test skill `{twin}`")
    return faults
