"""Overrides in the grammar of Hydra: https://hydra.cc/docs/advanced/override_grammar/basic/."""

from __future__ import annotations

import logging
import re

log = logging.getLogger(__name__)


def override(key: str, value: object) -> str:
    """Return an override for Hydra's command line, with the value in quotes if the grammar needs them.

    The quotes are Hydra's. For a shell, the result must be quoted once more.
    """
    text = str(value)
    if re.fullmatch(r"[\w./-]+", text):
        return f"{key}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'
