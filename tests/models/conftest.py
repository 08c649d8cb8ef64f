import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden():
    """Gives the path of a file of reference vectors."""
    folder = Path(os.environ.get("TOE_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))

    def path(name):
        if not (folder / name).is_file():
            pytest.skip(f"no reference vectors at {folder / name}: set TOE_GOLDEN to their folder")
        return folder / name

    return path
