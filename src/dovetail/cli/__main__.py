"""`python -m dovetail.cli`."""

from dovetail.cli import main

raise SystemExit(main())
