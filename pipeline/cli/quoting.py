"""Overrides as they are typed on a command line of Hydra's."""

from __future__ import annotations

import logging
import re

log = logging.getLogger(__name__)


def override(key: str, value: object) -> str:
    """Return an override for a command line of Hydra's, the value quoted if its grammar needs that."""
    text = str(value)
    if re.fullmatch(r"[\w./-]+", text):
        return f"{key}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'
