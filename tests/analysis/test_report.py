import json
import re
import subprocess
from pathlib import Path

import pytest

from toe_train.analysis.paper import PAPER
from toe_train.analysis.report import read_report
from toe_train.cli.tools import main as tools
from toe_train.errors import UserError
from toe_train.recipes import dump_config, load_config

REPOSITORY = Path(__file__).resolve().parents[2]


def cells(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


@pytest.fixture
def made(configs, tmp_path):
    """made(name, config, *overrides, ...) -> a run folder, without the first `skipped` epochs' lines."""

    def maker(
        name,
        config,
        *overrides,
        seconds=(10.0,),
        top1=50.0,
        epochs=None,
        sizes=(32,),
        device="a device",
        skipped=0,
        rates=(),
    ):
        folder = tmp_path / name
        folder.mkdir()
        resolved = load_config(configs / f"{config}.yaml", list(overrides))
        (folder / "config.yaml").write_text(dump_config(resolved))
        schedule = resolved.expansion.schedule() if resolved.expansion else None
        command = "toe-train --config a.yaml"
        lines = [{"kind": "start", "command": command, "device": device, "versions": "torch 9", "num_classes": 10}]
        hours = 0.0
        for epoch in range(resolved.epochs if epochs is None else epochs):
            stage = schedule.stage(epoch) if schedule else 0
            hours += seconds[min(stage, len(seconds)) - 1] / 3600
            scores = {"val_top1": top1 + epoch, "ema_top1": top1 + epoch + 0.5}
            place = {"kind": "epoch", "epoch": epoch, "stage": stage, "tokens_kept": 8 * (stage + 1)}
            place["image_size"] = sizes[min(epoch, len(sizes) - 1)]
            if epoch < skipped:
                continue
            if rates:
                place["images_per_second"] = rates[epoch]
            lines.append({**place, **scores, "gpu_hours": hours, "gpu_hours_with_loading": 2 * hours})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return maker


SHORT = ("epochs=6", "schedule.warmup_epochs=1")
STAGES = (*SHORT, "expansion.stage_epochs=[0,2,4]")


def test_seeds_are_one_row_beside_the_plain_run(made):
    folders = [made(f"plain-s{seed}", "proxy", *SHORT, f"seed={seed}", top1=40.0 + 2 * seed) for seed in (0, 1)]
    folders.append(made("toe-s0", "proxy_toe_r05", *STAGES, seconds=(4.0, 6.0, 10.0)))
    plain, toe = cells(read_report(folders, "Some runs").markdown())[1:3]
    assert plain[:9] == ["plain", "6", "2", "46.00 ± 1.41", "46.50 ± 1.41", "0.0167", "0.0333", "1.00x", "1.00x"]
    assert toe[:9] == ["toe", "6", "1", "55.00", "55.50", "0.0111", "0.0222", "1.50x", "1.50x"]
    assert plain[9:] == ["1.000x", "1.000x"]  # by FLOPs; of the paper's columns none is shown, as it has no such run
    assert 1.2 < float(toe[9].rstrip("x")) < 1.4


def test_time_in_each_stage(made):
    folder = made("toe-s0", "proxy_toe_r05", *STAGES, seconds=(4.0, 6.0, 10.0))
    text = read_report([folder], "Runs").markdown()
    assert "### Time in each stage" in text
    assert cells(text)[3:] == [
        ["toe", "1", "32", "16", "4", "2.50x"],
        ["toe", "2", "32", "24", "6", "1.67x"],
        ["toe", "3", "32", "32", "10", "1.00x"],
    ]


def test_time_at_each_size_of_a_curriculum_and_after_another_folders_checkpoint(made):
    folder = made(
        "toe-s0", "proxy_toe_r05", *STAGES, seconds=(4.0, 6.0, 10.0), sizes=(24, 24, 24, 24, 24, 32), skipped=1
    )
    text = read_report([folder], "Runs").markdown()
    assert "Not finished" not in text
    assert [line[1:5] for line in cells(text)[3:]] == [
        # Of stage 1 only the second epoch is there, and how long it took is not known without the first.
        ["2", "24", "24", "6"],
        ["3", "24", "32", "10"],
        ["3", "32", "32", "10"],
    ]


def test_the_papers_figures_stand_beside_its_runs_alone(made):
    paper = made("deit_tiny_toe_r05", "deit_tiny_toe_r05", seconds=(395.0, 542.0, 655.0))
    other = made("deit_small-s0", "deit_small", "epochs=100")
    rows = cells(read_report([paper, other], "Table 2").markdown())
    assert rows[0][11:] == ["paper: top-1 %", "paper: GPU-hours", "paper: speed-up", "paper: by FLOPs"]
    assert rows[1][11:] == ["72.6", "44.2", "1.24x", "1.27x"]
    assert rows[1][5] == "44.2"  # what its Table 10 adds up to
    assert [row[6] for row in rows[4:]] == ["395", "542", "655"]
    assert rows[2][11:] == ["-"] * 4


def test_unfinished_runs_are_named_and_not_compared(made):
    text = read_report(
        [made("plain-s0", "proxy", *SHORT), made("toe-s0", "proxy_toe_r05", *STAGES, epochs=3)], "Runs"
    ).markdown()
    assert "**Not finished**, epochs in brackets: toe-s0 (3 of 6)" in text
    assert cells(text)[2][7:9] == ["-", "-"]


def test_runs_that_went_on_with_other_values_are_named(made):
    folder = made("mixed", "proxy", *SHORT)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"kind": "start", "experiment_id": name}) + "\n" for name in "aab")
        + (folder / "metrics.jsonl").read_text()
    )
    clean = made("clean", "proxy", *SHORT)
    earlier = json.dumps({"kind": "start", "experiment": "by an earlier rule"}) + "\n"
    (clean / "metrics.jsonl").write_text(earlier + (clean / "metrics.jsonl").read_text())
    told = read_report([folder, clean], "Runs").markdown()
    assert "**Went on with other values** than it began with: mixed;" in told


def test_an_unfinished_seed_leaves_the_finished_ones_alone(made):
    folders = [made("toe-s0", "proxy_toe_r05", *STAGES, top1=80.0)]
    folders.append(made("toe-s1", "proxy_toe_r05", *STAGES, "seed=1", top1=20.0, epochs=1))
    text = read_report(folders, "Runs").markdown()
    assert cells(text)[1][:4] == ["toe", "6", "1", "85.00"]
    assert "toe-s1 (1 of 6)" in text


def test_speed_is_compared_on_one_device_and_by_one_recipe(made):
    toe = made("toe-s0", "proxy_toe_r05", *STAGES, seconds=(4.0, 6.0, 10.0))
    other = made("other-s0", "proxy", *SHORT, "optim.lr=1", seconds=(100.0,))
    plain = made("plain-s0", "proxy", *SHORT)
    rows = cells(read_report([other, plain, toe], "Runs").markdown())
    assert rows[3][7] == "1.50x"  # over plain, not over the other recipe that comes first
    elsewhere = made("elsewhere-s0", "proxy", *SHORT, device="another device")
    assert cells(read_report([elsewhere, toe], "Runs").markdown())[2][7] == "-"


def test_seeds_from_two_machines_and_from_two_sources_are_one_row(made):
    folders = [
        made(f"fine-s{seed}", "proxy", *SHORT, f"seed={seed}", f"data.root=/{seed}", f"model.initial_weights={seed}.pt")
        for seed in (0, 1)
    ]
    assert cells(read_report(folders, "Runs").markdown())[1][:3] == ["fine", "6", "2"]


def test_what_cannot_be_reported(made, tmp_path):
    first = made("plain-s0", "proxy", *SHORT)
    for folders, words in [
        ([tmp_path], "is not a run folder: it holds no config.yaml and no metrics.jsonl"),
        ([first, made("plain-s1", "proxy", *SHORT, "seed=1", "optim.lr=1")], "plain differ in more than their seed"),
        ([first, first], "have the same seed"),
    ]:
        with pytest.raises(UserError, match=words):
            read_report(folders, "Runs")


def test_files_of_a_report(made, tmp_path, capsys):
    plain = made("plain-s0", "proxy", *SHORT)
    toes = [
        made(
            f"toe{rate}-s0", "proxy_toe_r05", *STAGES, f"expansion.keep_rates=[0.{rate}, 0.8, 1.0]", seconds=(rate,) * 3
        )
        for rate in (5, 6)
    ]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- report Ours -->\nof before\n<!-- end of report -->\nafter\n")
    output = tmp_path / "report"
    command = ["report", *map(str, [plain, *toes]), "--title", "Ours", "--output", str(output), "--into", str(page)]
    assert tools(command) == 0
    assert capsys.readouterr().out == (output / "report.md").read_text()
    assert sorted(path.name for path in output.iterdir()) == [
        *("accuracy.png", "compute.png", "keep.png", "report.html", "report.md", "time.png")
    ]
    html = (output / "report.html").read_text()
    assert html.count("<table>") == 3
    assert html.count("data:image/png;base64,") == 4
    text = page.read_text()
    assert text.startswith("before\n<!-- report Ours -->\na device, torch 9.")
    assert text.endswith("<!-- end of report -->\nafter\n")
    assert "of before" not in text
    assert tools(command) == 0
    assert page.read_text() == text
    capsys.readouterr()
    assert tools([*command[:6], "--into", str(page), "--differences"]) == 0
    alone = capsys.readouterr().out
    assert alone.splitlines()[2].strip("| ") in text
    assert "seed by seed" in text
    assert (
        page.read_text()
        == f"before\n<!-- report Ours -->\n{alone.partition(chr(10))[2].strip()}\n<!-- end of report -->\nafter\n"
    )
    assert (output / "report.html").read_text() == html
    assert tools(["report", str(plain), "--differences"]) == 2
    assert "no two of these rows are compared" in capsys.readouterr().err
    (tmp_path / "plain.md").write_text("no marks")
    (tmp_path / "picture").write_bytes(b"\xff\x00")
    for name, words in [
        ("plain.md", "it has no lines '<!-- report Ours -->'"),
        ("picture", "cannot be read"),
        ("none.md", "cannot be read"),
    ]:
        assert tools([*command[:-1], str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err


def test_the_papers_rows_are_configurations_and_rows_of_scripts(configs):
    for name, row in PAPER.items():
        if row.table in (1, 2, 3, 4, 5, "B1"):
            config = load_config(configs / f"{name.removesuffix('_cifar100')}.yaml", [])
            assert config.epochs == row.epochs
            assert config.data.kind == row.kind.replace("100", "10")


def test_the_papers_stages_add_up_to_its_hours():
    staged = [row for row in PAPER.values() if row.stage_seconds]
    assert len(staged) == 7
    for row in staged:
        assert sum(row.stage_seconds) / 36 == pytest.approx(row.hours, abs=0.15)  # 100 epochs each


PAGES = "README.md", "docs/results.md", "docs/finetuning_cpu.md", "docs/detection.md"
COMMANDS = [
    (page, line.strip("` "))
    for page in PAGES
    for line in (REPOSITORY / page).read_text().replace("\\\n", "").splitlines()
    if f"--into {page}" in line
]


def test_all_pages_name_the_commands_of_their_tables():
    assert {page for page, _ in COMMANDS} == set(PAGES)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda text: text.split("--title ")[-1])
def test_a_table_of_a_page_is_what_its_command_gives(tmp_path, monkeypatch, capsys, page, command):
    expanded = subprocess.run(  # {a,b}-s* is the shell's
        ["bash", "-c", f"printf '%s\\n' {command.removeprefix('toe-tools ')}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    copy = tmp_path / "page.md"
    text = (REPOSITORY / page).read_text()
    copy.write_text(re.sub(r"(<!-- report .*? -->).*?(<!-- end of report -->)", r"\1\2", text, flags=re.DOTALL))
    monkeypatch.chdir(REPOSITORY)
    assert tools([str(copy) if word == page else word for word in expanded]) == 0
    made = f"<!-- report {expanded[expanded.index('--title') + 1]} -->\n"
    assert _section(copy.read_text(), made) == _section(text, made) != ""


def _section(text: str, begin: str) -> str:
    """What stands between a mark and the next end of a report."""
    return text.partition(begin)[2].partition("<!-- end of report -->")[0]


def test_time_in_each_segment_of_growth(configs, tmp_path):
    given = ["epochs=6", "schedule.warmup_epochs=1", "method.from_epochs=[0,3]"]
    config = load_config(configs / "proxy_networkexpansion.yaml", given)
    (tmp_path / "grown").mkdir()
    (tmp_path / "grown/config.yaml").write_text(dump_config(config))
    lines = [{"kind": "start", "num_classes": 10}]
    for epoch in range(6):
        hours = (min(epoch + 1, 3) * 5 + max(epoch - 2, 0) * 10) / 3600
        place = {"kind": "epoch", "epoch": epoch, "stage": epoch // 3 + 1, "tokens_kept": 64, "image_size": 32}
        lines.append({**place, "val_top1": 1.0, "gpu_hours": hours, "gpu_hours_with_loading": hours})
    (tmp_path / "grown/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = cells(read_report([tmp_path / "grown"], "Runs").markdown())
    assert found[2:] == [
        ["run", "stage", "pixels", "tokens", "blocks", "GPU-seconds an epoch", "against the last"],
        ["grown", "1", "32", "64", "6", "5", "2.00x"],
        ["grown", "2", "32", "64", "12", "10", "1.00x"],
    ]


def test_a_report_says_of_which_model_a_methods_figures_are(made):
    tome = made("tome-s0", "proxy_tome", *SHORT)
    sparse = made("sparse-s0", "proxy_s2vite", *SHORT)
    mended = made("mended-s0", "proxy_s2vite", *SHORT, "method.revive=small_weights")
    most = made("most-s0", "proxy_tome", *SHORT, "method.r=20")  # said once the model is there: of 64, 44, 24, 12, ...
    told = read_report([made("plain-s0", "proxy", *SHORT), tome, sparse, mended, most], "T").notes()
    names = ("**tome**", "**sparse**", "**mended**", "**plain**", "**most**")
    of_methods = [line for line in told if line.startswith(names)]
    assert len(of_methods) == 3
    assert "evaluation merges tokens as training does" in of_methods[0]
    assert "count active heads and units alone, and all are computed" in of_methods[1]
    assert "of 12 blocks lose half of their tokens" in of_methods[2]
    assert "lose half" not in of_methods[0]


def lines_of(report, title):
    (found,) = (
        [dict(zip(heads, line, strict=True)) for line in rows] for name, heads, rows in report.tables() if name == title
    )
    return found


def test_rows_are_compared_seed_by_seed_with_plain_training_and_with_what_costs_the_same(made):
    folders, rates = [], ("expansion.keep_rates=[0.6,0.8,1.0]", "expansion.initial_keep_rate=0.3")
    for seed, (plain, toe, random) in enumerate([(40, 42.0, 41.0), (43, 45.5, 47.5), (50, 51.5, 47.0)]):
        given = f"seed={seed}"
        folders += [
            made(f"plain-s{seed}", "proxy", *SHORT, given, top1=plain),
            made(f"toe-s{seed}", "proxy_toe_r05", *STAGES, *rates, given, top1=toe),
            made(f"random-s{seed}", "proxy_random", *STAGES, *rates, given, top1=random),
        ]
    folders.append(made("shorter-s0", "proxy", *SHORT, "epochs=5", top1=41.0))
    folders.append(made("begun-s0", "proxy_toe_r05", *STAGES, "train.ema_decay=0.9", epochs=2))
    report = read_report(folders, "Some")
    found = [tuple(line.values()) for line in lines_of(report, "Differences, seed by seed")]
    shares = {(line[0], line[1]): float(line[2].rstrip("x")) for line in found}
    rest = [line[:2] + line[3:] for line in found]
    assert rest == [
        ("toe", "plain", "3", "+2.00", "+0.76 .. +3.24", "higher, judged alone", "5 seeds"),
        ("toe", "random", "3", "+1.17", "-6.91 .. +9.25", "no difference shown", "86 seeds"),
        ("toe", "shorter", "1", "+2.00", "-", "one seed shows nothing", "-"),
        ("random", "plain", "3", "+0.83", "-8.49 .. +10.16", "no difference shown", "113 seeds"),
        ("random", "shorter", "1", "+1.00", "-", "one seed shows nothing", "-"),
        ("shorter", "plain", "1", "+0.00", "-", "one seed shows nothing", "-"),
    ]
    assert shares["shorter", "plain"] == pytest.approx(5 / 6, abs=1e-3)
    assert shares["toe", "random"] == pytest.approx(1.0, abs=0.02)
    first = lines_of(report, "")
    assert {line["run"]: line["by FLOPs"] for line in first}["shorter"] == "1.200x"  # over the longest plain one
    how = {line.split("**")[1]: line for line in report.made()}
    assert "Differs from plain in `epochs=5`. Made by `toe-train --config a.yaml`" in how["shorter"]
    assert "6 epochs of image_folder cifar10, on a device." in how["plain"]
    assert "`expansion={stage_epochs: [0, 2, 4], keep_rates: [0.6, 0.8, 1.0], initial_keep_rate: 0.3}`" in how["toe"]


def test_expansion_is_compared_with_the_other_methods_where_it_has_most_of_their_seeds(made):
    merging = (*SHORT, "method={kind: token_merging, r: 3}")
    folders = [made(f"tome-s{seed}", "proxy", *merging, f"seed={seed}", top1=40.0) for seed in (0, 1)]
    folders += [made(f"half-s{seed}", "proxy_toe_r05", *STAGES, f"seed={seed}", top1=41.0 + seed) for seed in (0, 1)]
    dearer = ("expansion.keep_rates=[0.6,0.8,1.0]", "expansion.initial_keep_rate=0.3")
    folders.append(made("nearer-s0", "proxy_toe_r05", *STAGES, *dearer, top1=50.0))
    folders += [made(f"random-s{seed}", "proxy_random", *STAGES, f"seed={seed}", top1=45.0) for seed in (0, 1)]
    part = (*STAGES, "expansion.merging=false")
    folders[:0] = [made(f"part-s{seed}", "proxy_toe_r05", *part, f"seed={seed}", top1=44.0) for seed in (0, 1)]
    lines = lines_of(read_report(folders, "Some"), "Differences, seed by seed")
    assert [(line["run"], line["seeds"], line["difference"]) for line in lines if line["against"] == "tome"] == [
        ("half", "2", "+1.50")
    ]
    assert lines[-1]["against"] == "tome"


ET = ("curriculum.stage_epochs=[0,2,3,4,5]",)


def test_efficienttrain_is_held_against_plain_training_of_equal_compute(made):
    folders = [made("et-s0", "proxy_et", *SHORT, *ET, top1=50.0), made("longer-s0", "proxy_et", "curriculum=null")]
    report = read_report(folders, "Some")
    assert not report.comparisons  # 60 epochs in place of 6
    assert report.notes()[2].startswith("**No two rows are compared**: there is no finished plain row")
    with pytest.raises(UserError, match="no two of these rows are compared"):
        report.markdown_of_differences()
    fewer = "curriculum=null", "epochs=4", "schedule.warmup_epochs=1"
    folders.append(made("equal-s0", "proxy_et", *fewer, top1=51.0))
    rates = ("expansion.keep_rates=[0.3,0.6,1.0]", "expansion.initial_keep_rate=0.15")
    folders.append(made("random-s0", "proxy_random", *STAGES, *rates))  # of 0.98 of its FLOPs, and no simpler
    (line,) = [
        line for line in lines_of(read_report(folders, "Some"), "Differences, seed by seed") if line["run"] == "et"
    ]
    assert (line["against"], line["difference"]) == ("equal", "+1.00")


def test_all_rows_are_compared_with_one_that_is_named(made):
    folders = [made(f"toe-s{seed}", "proxy_toe_r05", *STAGES, f"seed={seed}", top1=41.0 + seed) for seed in (0, 1)]
    part = (*STAGES, "expansion.merging=false")
    folders += [made(f"part-s{seed}", "proxy_toe_r05", *part, f"seed={seed}", top1=40.0) for seed in (0, 1)]
    folders += [made("plain-s0", "proxy", *SHORT), made("other-s0", "proxy", *SHORT, "model.drop_path=0.2")]
    report = read_report(folders, "Some", "toe")
    lines = lines_of(report, "Differences, seed by seed")
    assert [(line["run"], line["against"], line["difference"]) for line in lines] == [
        ("part", "toe", "-1.50"),
        ("plain", "toe", "+9.00"),
    ]
    assert any(note.startswith("Differences are against toe. They are in points") for note in report.notes())
    with pytest.raises(UserError, match="--against tow: no finished row has that name; those that are: toe, part,"):
        read_report(folders, "Some", "tow").notes()


def test_what_is_not_alike_is_not_compared(made):
    def data(folder, classes):
        text = (folder / "metrics.jsonl").read_text()
        (folder / "metrics.jsonl").write_text(text.replace('"num_classes": 10', f'"num_classes": {classes}'))
        return folder

    plain, toe = made("plain-s0", "proxy", *SHORT), made("toe-s0", "proxy_toe_r05", *STAGES)
    assert len(read_report([plain, toe], "Some").comparisons) == 1
    assert not read_report([plain, data(toe, 9)], "Some").comparisons


@pytest.mark.parametrize("other", ["augment.mixup=0", "augment.rand_augment=null", "schedule.min_lr=1e-4"])
def test_a_plain_run_by_another_recipe_is_no_baseline_and_on_no_line(made, other):
    former, plain = made("former-s0", "proxy", *SHORT, other, top1=30.0), made("plain-s0", "proxy", *SHORT)
    report = read_report([former, plain, made("toe-s0", "proxy_toe_r05", *STAGES)], "Some")
    assert [(found.row.name, found.other.name) for found in report.comparisons] == [("toe", "plain")]
    assert not _joined(report)


def test_a_curriculum_is_compared_by_the_augmentation_that_it_reads(made):
    et = made("et-s0", "proxy_et", "epochs=5", "schedule.warmup_epochs=1", "curriculum.stage_epochs=[0,1,2,3,4]")
    last = load_config(et / "config.yaml").curriculum.rand_augments[-1]
    plain = made(
        "plain-s0", "proxy_et", "curriculum=null", "epochs=5", "schedule.warmup_epochs=1", "augment.mix_group=64"
    )
    longer = made("longer-s0", "proxy_et", "curriculum=null", "epochs=6", "schedule.warmup_epochs=1")
    assert load_config(plain / "config.yaml").augment.rand_augment == last
    report = read_report([et, plain, longer], "Some")
    assert ("plain", "longer") in [(found.row.name, found.other.name) for found in report.comparisons]
    assert read_report([et, plain, longer], "Some", "et").comparisons[0].other.name == "et"


def test_what_a_run_does_not_read_is_no_difference(made):
    et = made("et-s0", "proxy_et", *SHORT, *ET, "curriculum.baseline_epochs=6")
    plain = made("plain-s0", "proxy_et", *SHORT, "curriculum=null", "augment.mix_group=64")
    (line,) = (line for line in read_report([et, plain], "Some").made() if line.startswith("**et**"))
    assert "Differs from plain in `curriculum=" in line
    assert "mix_group" not in line


def test_differences_that_are_equal_but_for_rounding_show_nothing(made):
    """Of 450 images; 100 * 301 / 450 - 100 * 300 / 450 is not 100 * 311 / 450 - 100 * 310 / 450 to a computer."""
    folders = []
    for seed, right in enumerate((300, 310, 401)):
        for name, config, more in (("plain", "proxy", 0), ("toe", "proxy_toe_r05", 1)):
            given = (*(STAGES if more else SHORT), f"seed={seed}")
            folders.append(made(f"{name}-s{seed}", config, *given))
            lines = [json.loads(line) for line in (folders[-1] / "metrics.jsonl").read_text().splitlines()]
            lines[-1]["val_top1"] = 100 * (right + more) / 450
            (folders[-1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = read_report(folders, "Some").comparisons
    assert found.finding == "no spread to judge by"


def test_a_row_that_is_shown_alone_and_not_among_all_says_so(made):
    folders = []
    for seed, (toe, random) in enumerate([(2.0, 4.0), (1.0, 4.0), (3.4, 4.0), (1.2, 4.1)]):
        for name, config, gain in (
            ("plain", "proxy", 0.0),
            ("toe", "proxy_toe_r05", toe),
            ("random", "proxy_random", random),
        ):
            given = (*(SHORT if name == "plain" else STAGES), f"seed={seed}")
            folders.append(made(f"{name}-s{seed}", config, *given, top1=40.0 + gain))
    lines = lines_of(read_report(folders, "Some"), "Differences, seed by seed")
    assert {(line["run"], line["against"]): line["finding"] for line in lines} == {
        ("toe", "plain"): "higher, judged alone",  # p = 0.04, and 0.05 / 2 is asked
        ("toe", "random"): "lower, judged alone",
        ("random", "plain"): "higher",
    }


def test_a_run_without_a_line_is_left_out_and_the_others_are_compared(made, capsys):
    folders = []
    for seed in (0, 1):
        folders += [made(f"plain-s{seed}", "proxy", *SHORT, f"seed={seed}")]
        folders += [made(f"toe-s{seed}", "proxy_toe_r05", *STAGES, f"seed={seed}")]
    (folders[0] / "metrics.jsonl").write_text("[1,2]\n")
    (found,) = read_report(folders, "Some").comparisons
    assert len(found.differences) == 1
    told = capsys.readouterr().err
    assert f"{folders[0]}/metrics.jsonl: line 1 is no whole line" in told
    assert f"holds no start of a run; {folders[0]} is left out" in told


def test_a_run_that_went_on_with_other_values_is_in_no_difference(made):
    plain, toe = made("plain-s0", "proxy", *SHORT), made("toe-s0", "proxy_toe_r05", *STAGES)
    metrics = toe / "metrics.jsonl"
    first, *rest = metrics.read_text().splitlines(keepends=True)
    starts = [json.dumps({**json.loads(first), "experiment_id": name}) + "\n" for name in ("one", "other")]
    metrics.write_text("".join([*starts, *rest]))
    report = read_report([plain, toe], "Some")
    assert [found.finding for found in report.comparisons] == ["no seed in common"]
    assert any("other values** than it began with: toe-s0;" in note for note in report.notes())


def test_a_line_joins_plain_runs_of_several_lengths_and_no_others(made):
    folders = [made(f"plain{epochs}-s0", "proxy", *SHORT, f"epochs={epochs}") for epochs in (6, 4, 5)]
    folders.append(made("small-s0", "proxy", *SHORT, "model.image_size=28"))
    folders.append(made("toe-s0", "proxy_toe_r05", *STAGES))
    assert _joined(read_report(folders, "Some")) == [[53.0, 54.0, 55.0]]  # the last of 4, 5 and 6 epochs


def _drawn(report, name):
    """The axes of a figure."""
    from matplotlib.figure import Figure as Canvas

    (figure,) = (one for one in report.figures() if one.name == name)
    axes = Canvas().subplots()
    figure.draw(axes)
    return axes


def _joined(report):
    """Scores that a line joins in the figure of compute."""
    lines = [
        line
        for line in _drawn(report, "compute").get_lines()
        if len(line.get_xdata()) > 1 and line.get_linestyle() == "-"
    ]
    return [list(line.get_ydata()) for line in lines]


def test_where_stages_begin_is_dotted(made):
    report = read_report([made("plain-s0", "proxy", *SHORT), made("toe-s0", "proxy_toe_r05", *STAGES)], "Some")
    dotted = [line.get_xdata()[0] for line in _drawn(report, "accuracy").get_lines() if line.get_linestyle() == ":"]
    assert dotted == [2.5, 4.5]  # between epochs 2 and 3, 4 and 5, counted from 1
    assert "Dotted: a stage" in report.figures()[0].caption
    assert "Dotted" not in read_report([made("other-s0", "proxy", *SHORT)], "Some").figures()[0].caption


def test_a_single_evaluation_is_no_curve(made):
    runs = made("plain-s0", "proxy", *SHORT), made("toe-s0", "proxy_toe_r05", *STAGES)
    for folder in runs:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines[1:-1]:
            del line["val_top1"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "accuracy" not in [figure.name for figure in read_report(runs, "Some").figures()]


def test_a_wide_table_is_scrolled_and_not_the_page(made):
    html = read_report([made("plain-s0", "proxy", *SHORT)], "Some").page()
    (rule,) = re.findall(r"\.wide \{([^}]*)\}", html)
    assert "overflow-x: auto" in rule
    assert html.count('class="wide"') == html.count("<table>") == 1


def test_times_of_what_ran_beside_others_are_left_out(made):
    steady, restless = (100, 100, 101, 99, 100, 100), (100, 100, 30, 100, 40, 90)
    plain = made("plain-s0", "proxy", *SHORT, rates=steady)
    folders = [
        made(
            f"toe-s{n}",
            "proxy_toe_r05",
            *SHORT,
            "expansion.stage_epochs=[0,4,5]",
            f"seed={n}",
            seconds=(9.0 + n,),
            rates=rates,
        )
        for n, rates in enumerate((steady, restless))
    ]
    report = read_report([plain, *folders], "Some")
    toe = lines_of(report, "")[1]
    assert (toe["seeds"], toe["GPU-hours"], toe["speed-up"]) == ("2", "0.015", "1.11x")  # of seed 0 alone
    assert {line["GPU-seconds an epoch"] for line in lines_of(report, "Time in each stage")} == {"9"}
    assert any(note.startswith("**Times are left out** of toe-s1:") for note in report.notes())
    alone = read_report([plain, folders[1]], "Some")
    assert lines_of(alone, "")[1]["GPU-hours"] == "-"
    assert [figure.name for figure in alone.figures()] == ["accuracy", "compute"]


def test_speed_ups_are_of_the_seeds_that_both_have(made):
    """Other seeds may be of another day, on which the machine was slower."""
    plain = [made(f"plain-s{n}", "proxy", *SHORT, f"seed={n}", seconds=(10.0 + 10 * n,)) for n in (0, 1)]
    toe = made("toe-s1", "proxy_toe_r05", *SHORT, "expansion.stage_epochs=[0,4,5]", "seed=1", seconds=(10.0,))
    found = lines_of(read_report([*plain, toe], "Some"), "")[1]
    assert (found["run"], found["speed-up"]) == ("toe", "2.00x")


def test_times_without_a_seed_in_common_are_not_compared(made):
    plain = [made(f"plain-s{n}", "proxy", *SHORT, f"seed={n}", seconds=(10.0 + n,)) for n in (0, 1)]
    part = (*SHORT, "expansion.stage_epochs=[0,4,5]")
    other = made("toe-s2", "proxy_toe_r05", *part, "seed=2", seconds=(5.0,))
    report = read_report([*plain, other], "Some")
    assert lines_of(report, "")[1]["speed-up"] == "-"
    assert "time" not in [figure.name for figure in report.figures()]
    both = made("less-s1", "proxy_toe_r05", *part, "seed=1", seconds=(5.0,))
    assert _places(read_report([*plain, both], "Some"), "time") == pytest.approx(
        [2 * 66 / 3600, 2 * 30 / 3600]
    )  # seed 1


def _places(report, name):
    """Where the rows of a figure stand on its axis."""
    return [drawn.lines[0].get_xdata()[0] for drawn in _drawn(report, name).containers]


def test_speed_ups_of_several_seeds_have_their_deviation(made):
    plain = [made(f"plain-s{n}", "proxy", *SHORT, f"seed={n}", seconds=(10.0 + 10 * n,)) for n in (0, 1)]
    part = (*SHORT, "expansion.stage_epochs=[0,4,5]")
    toe = [made(f"toe-s{n}", "proxy_toe_r05", *part, f"seed={n}", seconds=(8.0 + 4 * n,)) for n in (0, 1)]
    found = lines_of(read_report([*plain, *toe], "Some"), "")
    assert found[0]["speed-up"] == "1.00x"
    assert found[1]["speed-up"] == "1.46x ± 0.29"  # 1.25 and 1.67


def test_columns_have_names_of_their_own(made):
    report = read_report([made("plain-s0", "proxy", *SHORT), made("toe-s0", "proxy_toe_r05", *STAGES)], "Some")
    for _, heads, _ in report.tables():
        assert len(set(heads)) == len(heads)
