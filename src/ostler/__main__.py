"""`python -m ostler` is `ostler`."""

import sys

from ostler.cli import main

sys.exit(main())
