"""`python -m demo`."""

import sys

from plugins.errors import UserError
from plugins.files.installation import explained

try:
    with explained():
        from demo.run import main
    sys.exit(main())
except UserError as error:
    sys.exit(f"error: {error}")
