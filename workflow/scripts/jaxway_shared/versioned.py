"""JSON files that pass between programs: objects that name the version of their format."""

import json
from pathlib import Path
from typing import Any

from jaxway_shared.errors import UserError


def read(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Content of a file that is a ``kind``, such as "smoke test's result".

    Raises UserError where it is not one of this version; OSError where there is none.
    """
    try:
        content = json.loads(path.read_text())
        found = content.get("schema_version")
    except (ValueError, AttributeError):
        raise UserError("JW001", f"{path} is not a {kind}: delete it and make it again") from None
    if found != version:
        raise UserError(
            "JW001",
            f"{path} is a {kind} of schema version {found}, and this checkout reads version "
            f"{version}: delete it and make it again",
        )
    return dict(content)
