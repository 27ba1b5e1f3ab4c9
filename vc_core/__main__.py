import sys

from vc_core.cli import main

sys.exit(main())
