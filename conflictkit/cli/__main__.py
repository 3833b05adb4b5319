"""`python -m conflictkit.cli`, where the `conflictkit` command is not on the path."""

import sys

from conflictkit.cli import main

sys.exit(main())
