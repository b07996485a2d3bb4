"""Why a trial is what it is: a code and its values, worded where it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SAID = "said"
"""The code of a sentence of which nothing but its words is known: of an older record, of a plug-in."""


@dataclass(frozen=True)
class Reason:
    """`values` are raw: numbers, names."""

    code: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """In English."""
        return str(self.values.get("text", self.code))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` is its inverse."""
        return {"code": self.code, "values": dict(self.values)}

    @classmethod
    def from_dict(cls, data: Any) -> Reason:
        """Also from a sentence, as records until 3c8a73e have it. Raises ValueError."""
        if isinstance(data, str):
            return cls(SAID, {"text": data})
        if not isinstance(data, dict) or not isinstance(data.get("code"), str):
            raise ValueError(f"reason {data!r}")
        return cls(data["code"], dict(data.get("values", {})))
