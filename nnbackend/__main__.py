"""Run the command ``nnbackend`` as ``python -m nnbackend``."""

import sys

from nnbackend.cli.command import main

sys.exit(main())
