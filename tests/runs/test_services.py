"""What wandb and MLflow are given: a stand-in notes it; where the library is installed it is read back, offline."""

import json
import struct
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from toe_train.build import tracking
from toe_train.errors import UserError
from toe_train.recipes import load_config
from toe_train.runs.curves import Point
from toe_train.runs.mlflow_tracker import Mlflow
from toe_train.runs.wandb_tracker import Wandb

POINTS = [
    Point("step", 1, {"steps/loss/train_loss": 2.0}),
    Point("step", 2, {"steps/loss/train_loss": 1.5}),
    Point("epoch", 1, {"accuracy/val_top1": 50.0, "speed/stage": 1}),
]
SETTINGS = {"optim.lr": 1e-3, "model.name": "a", "model.kwargs": "{}"}


class StandIn(ModuleType):
    """wandb, as far as it is asked for: a run's `logged` are the arguments of `log`."""

    def __init__(self, mode="offline", has_key=True):
        super().__init__("wandb")
        self.calls, self.opened, self.has_key = [], [], has_key
        self.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))

    def Settings(self, **values):
        return values

    def login(self, prompt):
        assert not prompt
        return self.has_key

    def init(self, **values):
        self.calls.append(("init", values))
        run = SimpleNamespace(id=values["id"] or "new", offline=True, dir="/run/files")
        run.define_metric = lambda name, **options: self.calls.append(("metric", name, options))
        run.log = lambda values, **options: self.calls.append(("log", values, options))
        run.mark_preempting = lambda: self.calls.append(("preempting",))
        run.finish = lambda exit_code: self.calls.append(("finish", exit_code))
        return run


@pytest.fixture
def wandb(monkeypatch):
    for name in ("WANDB_NAME", "WANDB_DIR", "WANDB_CONSOLE", "WANDB_SILENT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_is_given_each_line_under_its_number(wandb, tmp_path):
    service = Wandb("deit", tmp_path, SETTINGS)
    assert service.begin(None) == "new"
    service.send(POINTS, 7)
    service.finish("finished")
    given = wandb.calls[0][1]
    assert (given["id"], given["resume"], given["name"], given["dir"]) == (None, None, "deit", str(tmp_path))
    assert given["config"] == SETTINGS
    assert ("metric", "steps/*", {"step_metric": "step"}) in wandb.calls
    assert ("metric", "accuracy/*", {"step_metric": "epoch"}) in wandb.calls
    logged = [call[1:] for call in wandb.calls if call[0] == "log"]
    assert logged == [
        ({"steps/loss/train_loss": 2.0, "step": 1}, {"step": 7, "commit": True}),
        ({"steps/loss/train_loss": 1.5, "step": 2}, {"step": 8, "commit": True}),
        ({"accuracy/val_top1": 50.0, "speed/stage": 1, "epoch": 1}, {"step": 9, "commit": True}),
    ]
    assert wandb.calls[-1] == ("finish", 0)


@pytest.mark.parametrize(
    ("status", "expected"), [("failed", [("finish", 1)]), ("preempted", [("preempting",), ("finish", 1)])]
)
def test_wandb_goes_on_in_its_run_and_learns_how_it_ended(wandb, tmp_path, status, expected):
    service = Wandb("deit", tmp_path, SETTINGS)
    assert service.begin("former") == "former"
    assert service.begin("former") == "former"  # again after a fault
    assert [call[1]["resume"] for call in wandb.calls if call[0] == "init"] == ["allow"]
    service.finish(status)
    assert wandb.calls[-len(expected) :] == expected


def test_wandb_s_own_variables_come_first(wandb, tmp_path, monkeypatch):
    for name in ("WANDB_NAME", "WANDB_DIR", "WANDB_CONSOLE", "WANDB_SILENT"):
        monkeypatch.setenv(name, "mine")
    Wandb("deit", tmp_path, SETTINGS).begin(None)
    given = wandb.calls[0][1]
    assert (given["name"], given["dir"]) == (None, None)
    assert given["settings"].keys() == {"finish_timeout", "x_transaction_log_flush_interval"}


@pytest.mark.parametrize(
    ("mode", "has_key", "is_refused"), [("online", False, True), ("online", True, False), ("offline", False, False)]
)
def test_wandb_without_a_key_is_refused_before_the_run(tiny, monkeypatch, mode, has_key, is_refused):
    monkeypatch.setitem(sys.modules, "wandb", StandIn(mode, has_key))
    config = load_config(tiny, ["log.trackers=[wandb]"])
    if not is_refused:
        tracking.require_trackers(config)
        return
    with pytest.raises(UserError, match="no key for its server; run `wandb login`, set WANDB_API_KEY"):
        tracking.require_trackers(config)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_named_with_its_remedy(tiny, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as fault:
        tracking.require_trackers(load_config(tiny, [f"log.trackers=[{name}]"]))
    assert str(fault.value).startswith(f"log.trackers: {name} cannot be imported (")
    assert f"pip install 'toe-train[{name}]'" in str(fault.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[wandbb]", "log.trackers.0 = 'wandbb': should be 'wandb' or 'mlflow'; did you mean wandb?"),
        ("wandb", "log.trackers = 'wandb': must be a list; of one value: [wandb]"),
        ("[mlflow, mlflow]", "names one twice; use [mlflow]"),
    ],
)
def test_what_is_no_list_of_trackers(tiny, given, message):
    with pytest.raises(UserError) as fault:
        load_config(tiny, [f"log.trackers={given}"])
    assert message in str(fault.value)


class MlflowStandIn(ModuleType):
    """MLflow with a store in memory that, as MLflow's, overwrites nothing."""

    def __init__(self):
        super().__init__("mlflow")
        self.runs, self.active, self.started = {}, None, []
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
            Param=lambda key, value: SimpleNamespace(key=key, value=value),
        )

    def active_run(self):
        return self.active

    def start_run(self, run_id, run_name):
        assert self.active is None, "MLflow refuses a second active run"
        self.started.append((run_id, run_name))
        run_id = run_id or "new"
        self.runs.setdefault(run_id, SimpleNamespace(params={}, metrics=[], status="RUNNING"))
        self.active = SimpleNamespace(info=SimpleNamespace(run_id=run_id))
        return self.active

    def end_run(self, status):
        self.runs[self.active.info.run_id].status = status
        self.active = None

    def get_tracking_uri(self):
        return "sqlite:///here"

    def MlflowClient(self):
        return self

    def get_run(self, run_id):
        return SimpleNamespace(data=SimpleNamespace(params=self.runs[run_id].params))

    def get_metric_history(self, run_id, key):
        return [metric for metric in self.runs[run_id].metrics if metric.key == key]

    def log_batch(self, run_id, metrics=(), params=()):
        run = self.runs[run_id]
        assert not run.params.keys() & {param.key for param in params}, "MLflow changes no parameter"
        run.params |= {param.key: param.value for param in params}
        run.metrics += metrics


def test_mlflow_is_given_each_point_once_even_where_it_is_sent_again(monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_NAME", raising=False)
    module = MlflowStandIn()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    service = Mlflow("deit", SETTINGS)
    assert service.begin(None) == "new"
    service.send(POINTS[:2], 1)
    service.finish("preempted")
    assert module.runs["new"].status == "KILLED"
    again = Mlflow("deit", {**SETTINGS, "optim.lr": 2e-3, "seed": 1})
    assert again.begin("new") == "new"
    again.send(POINTS, 1)
    again.finish("finished")
    assert module.started == [(None, "deit"), ("new", None)]
    run = module.runs["new"]
    assert run.params == {**{key: str(value) for key, value in SETTINGS.items()}, "seed": "1"}
    told = [(metric.key, metric.step, metric.value) for metric in run.metrics]
    assert told == [(tag, point.at, value) for point in POINTS for tag, value in point.values.items()]
    assert run.status == "FINISHED"


def test_mlflow_goes_on_in_a_run_whose_beginning_failed(monkeypatch):
    module = MlflowStandIn()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    service = Mlflow("deit", SETTINGS)
    get_run, module.get_run = module.get_run, lambda run_id: 1 / 0
    with pytest.raises(ZeroDivisionError):
        service.begin(None)
    module.get_run = get_run
    assert service.begin(None) == "new"
    assert len(module.started) == 1


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, held = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        held += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(held)
            held = b""
            yield record


@pytest.mark.slow
def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = Wandb("deit", tmp_path, SETTINGS)
    run = first.begin(None)
    first.send(POINTS[:2], 1)
    first.finish("preempted")
    time.sleep(1.1)  # wandb names its folders by the second
    again = Wandb("deit", tmp_path, SETTINGS)
    assert again.begin(run) == run
    again.send(POINTS[2:], 3)
    again.finish("finished")
    records = [
        record for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")) for record in wandb_records(path)
    ]
    assert {(record.run.run_id, record.run.display_name) for record in records if record.HasField("run")} == {
        (run, "deit")
    }
    rows = [record.history for record in records if record.HasField("history")]
    assert [row.step.num for row in rows] == [1, 2, 3]
    values = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in rows]
    for point, found in zip(POINTS, values, strict=True):
        assert {tag: found[tag] for tag in point.values} == point.values
        assert found[point.axis] == point.at
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]
    assert any(record.HasField("preempting") for record in records)


@pytest.mark.slow
def test_mlflow_itself_in_a_file(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    first = Mlflow("deit", SETTINGS)
    run = first.begin(None)
    first.send(POINTS[:2], 1)
    first.finish("preempted")
    again = Mlflow("deit", {**SETTINGS, "optim.lr": 2e-3})
    assert again.begin(run) == run
    again.send(POINTS, 1)
    again.finish("finished")
    client = mlflow.MlflowClient()
    found = client.get_run(run)
    assert (found.info.run_name, found.info.status) == ("deit", "FINISHED")
    assert found.data.params == {key: str(value) for key, value in SETTINGS.items()}
    for tag in ("steps/loss/train_loss", "accuracy/val_top1", "speed/stage"):
        expected = [(point.at, point.values[tag]) for point in POINTS if tag in point.values]
        assert [(metric.step, metric.value) for metric in client.get_metric_history(run, tag)] == expected
