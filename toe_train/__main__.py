"""`python -m toe_train`: the same as `toe-train`, for torchrun."""

import sys

from toe_train.cli.train import main

sys.exit(main())
