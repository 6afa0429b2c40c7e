"""`python -m secagg`."""

import sys

from .cli import main

sys.exit(main())
