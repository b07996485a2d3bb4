"""`python -m pipeline` is the same program as `slackwater`."""

import sys

from pipeline.cli import main

sys.exit(main())
