"""``python -m vggfast``."""

import sys

from vggfast.cli import main

sys.exit(main())
