"""Small archives of VOC 2007 and MS-COCO 2014 in the official layout."""

import io
import json
import pathlib
import tarfile
import zipfile

import numpy as np
from PIL import Image

VOC = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog")
VOC += ("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
VOC_SPLITS = {"train": range(1, 31), "val": range(31, 51), "test": range(51, 71)}
COCO_SPLITS = {"train2014": range(1, 31), "val2014": range(31, 47)}
WIDTH, HEIGHT = 120, 90


def jpeg(number: int) -> bytes:
  y, x = np.mgrid[:HEIGHT, :WIDTH]
  image = np.stack([x * 2 + number * 17, y * 2 + number * 29, x + y + number * 41], axis=-1) % 256
  file = io.BytesIO()
  Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=90)
  return file.getvalue()


def voc_objects(number: int) -> list[tuple[str, int]]:
  """(class, difficult) of each object; every fourth image has a difficult one, and image 8 nothing else."""
  second = (VOC[(3 * number + 1) % 20], int(number % 4 == 0))
  return [second] if number == 8 else [(VOC[number % 20], 0), second]


def _annotation(number: int) -> bytes:
  objects = "".join(
    f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
    f"<bndbox><xmin>{12 + 6 * i}</xmin><ymin>9</ymin><xmax>60</xmax><ymax>45</ymax></bndbox></object>"
    for i, (name, difficult) in enumerate(voc_objects(number))
  )
  size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
  return f"<annotation><filename>{number:06d}.jpg</filename>{size}{objects}</annotation>".encode()


def write_voc(folder: pathlib.Path) -> None:
  for archive, splits in (("VOCtrainval_06-Nov-2007.tar", ("train", "val")), ("VOCtest_06-Nov-2007.tar", ("test",))):
    with tarfile.open(folder / archive, "w") as tar:

      def add(name, content, tar=tar):
        info = tarfile.TarInfo(f"VOCdevkit/VOC2007/{name}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

      for split in splits:
        add(f"ImageSets/Main/{split}.txt", "".join(f"{number:06d}\n" for number in VOC_SPLITS[split]).encode())
        for number in VOC_SPLITS[split]:
          add(f"JPEGImages/{number:06d}.jpg", jpeg(number))
          add(f"Annotations/{number:06d}.xml", _annotation(number))


def write_coco(folder: pathlib.Path) -> None:
  """Every fifth image has no annotation; every seventh nothing but a crowd."""
  with zipfile.ZipFile(folder / "annotations_trainval2014.zip", "w") as annotations:
    for split, numbers in COCO_SPLITS.items():
      names = {number: f"COCO_{split}_{number:012d}.jpg" for number in numbers}
      with zipfile.ZipFile(folder / f"{split}.zip", "w") as images:
        for number, name in names.items():
          images.writestr(f"{split}/{name}", jpeg(number))
      content = {
        "images": [
          {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH} for number, name in names.items()
        ],
        "categories": [{"id": i, "name": f"thing {i}", "supercategory": "things"} for i in range(1, 81)],
        "annotations": [
          {
            "id": 10 * number + k,
            "image_id": number,
            "category_id": 1 + (number + k) % 80,
            "iscrowd": int(number % 7 == 0),
            "area": 100.0,
            "bbox": [12, 9, 48, 36],
          }
          for number in numbers
          if number % 5
          for k in range(2)
        ],
      }
      annotations.writestr(f"annotations/instances_{split}.json", json.dumps(content))
