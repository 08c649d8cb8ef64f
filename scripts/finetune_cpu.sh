#!/usr/bin/env bash
# Fine-tuning on a CPU: a small DeiT trained on CIFAR-10, then on blood cells, plain and with ToE, in minutes a run.
# BCCD=/path/to/bccd scripts/finetune_cpu.sh --seeds 3 data.root=/path/to/cifar10
# BCCD holds train/, val/ and test/ and annotations/instances_{train,val,test}.json in COCO's form (default: data/bccd in
# the repository). All runs start from one base, of seed 0. The output folder is runs/finetune-cpu where none is given.
set -euo pipefail
case " $* " in *" --output "*) ;; *) set -- --output "$(cd "$(dirname "$0")/.." && pwd)/runs/finetune-cpu" "$@" ;; esac
set -- --proxy "$@"
. "$(dirname "$0")/lib.sh"
[ "$scale" = full ] || fail "--cpu and --smoke: its runs are small as they are; leave it out"

# cells FOLDER: cuts the cells of FOLDER's images as an image folder, once. Train's are the images of train, val's those
# of val and test; of each image two red cells at most, of which there are many, and all of the other kinds.
cells() {
    [ -d "$output/cells" ] || python - "$1" "$output/cells" <<'END'
import json, sys
from pathlib import Path
from PIL import Image
source, whole = map(Path, sys.argv[1:])
part = whole.with_name("cells.part")
for split, parts in (("train", ["train"]), ("val", ["val", "test"])):
    for name in parts:
        found = json.loads((source / f"annotations/instances_{name}.json").read_text())
        kinds = {kind["id"]: kind["name"] for kind in found["categories"]}
        files = {image["id"]: image["file_name"] for image in found["images"]}
        boxes = {number: [] for number in files}
        for object in found["annotations"]:
            boxes[object["image_id"]].append((kinds[object["category_id"]], object["bbox"]))
        for number, file in files.items():
            image, red = Image.open(source / name / file).convert("RGB"), 0
            for place, (kind, (left, top, width, height)) in enumerate(boxes[number]):
                red += kind == "RBC"
                if kind == "RBC" and red > 2:
                    continue
                side = min(1.2 * max(width, height), *image.size)
                x, y = (min(max(start + length / 2 - side / 2, 0), most - side)
                        for start, length, most in ((left, width, image.width), (top, height, image.height)))
                cell = image.crop((round(x), round(y), round(x + side), round(y + side)))
                folder = part / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                cell.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{Path(file).stem}_{place}.png")
part.rename(whole)
END
}

# base: the run that all of them start from.
base() {
    local first=0 last=0 runs=()
    train cells_base cells_base
}

cells "$(absolute "${BCCD:-$PWD/data/bccd}")"
base
extra+=("data.root=$output/cells" "model.initial_weights=$output/cells_base-s0/checkpoints/last.pt") # after CIFAR's
train cells cells
train cells_toe cells_toe
report "Fine-tuning on a CPU"
