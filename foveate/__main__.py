"""`python -m foveate`: the command `foveate`, also for launchers (`deepspeed --module foveate`)."""

import sys

from foveate.command import main

if __name__ == "__main__":
    sys.exit(main())
