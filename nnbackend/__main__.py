"""``python -m nnbackend``."""

import sys

from nnbackend.cli import main

sys.exit(main())
