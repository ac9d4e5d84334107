"""``python -m nnbackend``."""

import sys

from nnbackend.cli.main import main

sys.exit(main())
