"""`python -m plugins.demo`."""

import sys

from plugins.demo.run import main
from plugins.errors import UserError

try:
    sys.exit(main())
except UserError as error:
    sys.exit(f"error: {error}")
