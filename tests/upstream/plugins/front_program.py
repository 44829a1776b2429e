"""Run ``connector-service`` and, at its end, write the names of every module it had imported.

``python front_program.py FILE serve ...``; the command is the installed one's own function, which
leaves by ``os._exit``.
"""

import os
import sys
from pathlib import Path

from connector_service.cli.main import main

path = Path(sys.argv.pop(1))
leave = os._exit


def write_and_leave(code: int) -> None:
    path.write_text("\n".join(sorted(sys.modules)))
    leave(code)


os._exit = write_and_leave
main()
