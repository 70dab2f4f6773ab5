"""`python workflow/jaxway`: the command `jaxway` of this very checkout, whatever is installed."""

import sys
from pathlib import Path

if not __package__:
    workflow = Path(__file__).resolve().parents[1]
    sys.path[:1] = [str(workflow), str(workflow / "scripts")]

from jaxway.cli import main

main()
