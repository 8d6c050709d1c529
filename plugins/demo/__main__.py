"""`python -m plugins.demo`."""

import sys

from plugins.errors import UserError
from plugins.installation import explained

try:
    with explained():
        from plugins.demo.run import main
    sys.exit(main())
except UserError as error:
    sys.exit(f"error: {error}")
