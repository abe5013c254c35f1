"""The command line: ``python -m spa_dat``, or ``spa-dat``."""

from __future__ import annotations

from ._cli import main

if __name__ == "__main__":
    raise SystemExit(main())
