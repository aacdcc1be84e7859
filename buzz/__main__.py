"""`python -m buzz` is the command `buzz`, also where that is not on the path: `torchrun ... -m buzz eval xsum`."""

import sys

from buzz.cli import run

if __name__ == "__main__":
    sys.argv[0] = "buzz"  # as the command's own is: run folders keep it
    run()
