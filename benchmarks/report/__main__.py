"""The command `python -m benchmarks.report`: write benchmarks/RESULTS.md and its plots, or check them."""

from .page import main

raise SystemExit(main())
