"""Load on a running server, as `quire bench`: python -m quire.benchmarks.serving --help"""

from __future__ import annotations

from ..api.load import main

if __name__ == "__main__":
    raise SystemExit(main())
