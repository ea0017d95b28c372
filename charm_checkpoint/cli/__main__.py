from __future__ import annotations

import sys

from charm_checkpoint.cli import main

sys.exit(main())
