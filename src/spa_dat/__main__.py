"""The command line: ``python -m spa_dat``, or ``spa-dat``."""

from __future__ import annotations

from .cli._main import main

if __name__ == "__main__":
    raise SystemExit(main())
