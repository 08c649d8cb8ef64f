import pytest

from toe_train.cli.tools import main as tools


@pytest.fixture
def said(capsys):
    """said(*arguments) -> (exit code, stdout, stderr) of toe-tools."""

    def run(*arguments):
        capsys.readouterr()
        code = tools([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run
