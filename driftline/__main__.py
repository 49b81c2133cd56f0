"""`python -m driftline`: the same as the command `driftline`."""

import sys

from driftline.cli import main

sys.exit(main())
