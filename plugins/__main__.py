"""`python -m plugins` is `higgs-audio`."""

import sys

from plugins.cli import main

sys.exit(main())
