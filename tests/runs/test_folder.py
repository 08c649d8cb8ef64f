"""What a run writes of its own origin; and what its folder's code stands on."""

import ast
import errno
from pathlib import Path

import yaml

from toe_train import runs
from toe_train.build import lifecycle
from toe_train.runs.folder import RunFolder, versions


def test_the_configuration_stands_under_its_origin(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_config("epochs: 3\n", {"command": "toe-train --config x.yaml"})
    assert folder.config.read_text() == "# command: toe-train --config x.yaml\nepochs: 3\n"
    assert yaml.safe_load(folder.config.read_text()) == {"epochs": 3}


def test_versions_are_plain_text():
    assert {"toe-train", "python", "torch", "torchvision", "timm", "numpy"} == versions().keys()
    assert {type(version) for version in versions().values()} == {str}


def test_the_list_of_files_is_whole():
    folder = Path(runs.__file__).parent
    for path in folder.glob("*.py"):
        assert path.name == "__init__.py" or f"    {path.name}: " in runs.__doc__
        tree = ast.parse(path.read_text())
        imports = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imports += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        ours = [name for name in imports if name.startswith("toe_train")]
        assert all(name.split(".")[1] in ("errors", "_version", "runs") for name in ours)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refused(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    lifecycle._open_folder(RunFolder(tmp_path / "first"), "auto")
    assert "locks" not in capsys.readouterr().out
    monkeypatch.setattr("toe_train.runs.folder.fcntl.lockf", refused)
    lifecycle._open_folder(RunFolder(tmp_path / "second"), "auto")
    told = (
        f"note: {tmp_path / 'second'} is on a file system without locks: nothing keeps a second run from training there"
    )
    assert told in capsys.readouterr().out
