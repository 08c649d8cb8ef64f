"""`python -m toe_train`: the same as `toe-train`, for torchrun."""

import os

from toe_train.cli.train import main

if __name__ == "__main__":
    code = main()  # which has written out all that it printed
    # Not sys.exit: what torch's and gloo's threads do while the interpreter is taken down must not change the exit
    # code, which decides whether the run is started again (seen once: SIGABRT in place of 3).
    os._exit(code)
