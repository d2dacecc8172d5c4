"""Module entry: ``python -m medseg_kit.cli`` is ``medseg``."""

from __future__ import annotations

from medseg_kit.cli.main import main

if __name__ == "__main__":
    main()
