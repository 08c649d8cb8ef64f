"""The report's table of detection runs."""

import json

from toe_train.analysis.box_scores import box_scores
from toe_train.analysis.report import read_report
from toe_train.analysis.runs import read_rows
from toe_train.recipes import dump_config, load_config


def folder_of(root, config, **scores):
    root.mkdir()
    (root / "config.yaml").write_text(dump_config(config))
    lines = [{"kind": "epoch", "epoch": epoch, "stage": 0, "tokens_kept": 30, **scores} for epoch in range(2)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_last_scores_of_detection_runs_over_seeds(configs, tmp_path):
    for seed, ap50 in ((0, 40.0), (1, 42.0)):
        config = load_config(configs / "proxy_yolos.yaml", ["epochs=2", f"seed={seed}"])
        losses = {"val_loss_ce": 0.5, "val_loss_bbox": 0.1 + 0.01 * seed}
        folder_of(tmp_path / f"plain-s{seed}", config, val_ap=20.0, val_ap50=ap50, **losses)
    folder_of(tmp_path / "other-s0", load_config(configs / "proxy.yaml", []), val_top1=50.0)
    names = ("plain-s0", "plain-s1", "other-s0")
    ((title, heads, lines),) = box_scores(read_rows([tmp_path / name for name in names]))
    assert (title, len(heads)) == ("Boxes", 6)
    assert lines == [("plain", "41.00 ± 1.41", "-", "0.500 ± 0.000", "0.1050 ± 0.0071", "-")]
    assert box_scores(read_rows([tmp_path / "other-s0"])) == []


def test_the_page_holds_what_the_results_give(configs):
    """What the command that stands there puts in."""
    root = configs.parent
    folders = sorted((root / "results/proxy_cpu").glob("proxy_yolos*-s*"))
    assert len(folders) == 6
    text = read_report(folders, "Detection on a CPU").markdown()
    assert text.partition("\n")[2].strip() in (root / "docs/detection.md").read_text()
