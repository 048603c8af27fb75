"""``${...}`` that cannot be resolved: what it says, and what works."""

from __future__ import annotations

import re
from collections.abc import Sequence

from conf.advice.near import nearest

RESOLVER = re.compile(r"\$\{\s*([A-Za-z_][\w.]*)\s*:")
KEY = re.compile(r"\$\{\s*([\w.\[\]]+)\s*\}")
VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]+)")
KNOWN = "${KEY} (another setting) and ${oc.env:VARIABLE,DEFAULT}"


def unresolved(key: str, text: str, keys: Sequence[str], *, itself: bool) -> str:
    """One sentence about the setting ``key``, whose value ``text`` cannot be resolved.

    ``keys``: the settings that there are; ``itself``: ``text`` leads back to ``key``.
    """
    start = f"{key}: {text} cannot be resolved"
    if match := VARIABLE.search(text):
        name = match[1]
        return (
            f"{start}: the environment variable {name} is not set; set it, or name a default with "
            f"${{oc.env:{name},VALUE}}"
        )
    if match := RESOLVER.search(text):
        return f"{start}: {_resolver(match[1], key, text)}"
    if match := KEY.search(text):
        name = match[1]
        if itself:
            return f"{start}: it refers to itself; write the value itself"
        guess = nearest(name, keys)
        return f"{start}: there is no setting {name}; did you mean ${{{guess}}}?"
    return f"{start}: it is no complete reference; it can be {KNOWN}, and a plain $ is written \\$ in front of {{"


def _resolver(name: str, key: str, text: str) -> str:
    if name == "now":
        dated = re.sub(r"\$\{\s*now\s*:\s*([^}]*)\}", lambda found: f"$(date +{found[1].strip()})", text)
        safe = dated.replace("${", "\\${")
        return (
            "a clock would give every attempt of a run another value, and a restart would not find its own folder; let "
            f'the shell write the date once: "{key}={safe}"'
        )
    if name.startswith("hydra"):
        return f"Hydra's own settings are not here; it can be {KNOWN}"
    return f"there is no resolver named {name}; it can be {KNOWN}"
