"""Own images in the forms that tools, spreadsheets and people give them: each read as it is meant, or named."""

import io
import json
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image
from test_files import ROOT, draw, png, thin_config

from configs import custom
from rmam_jax.data import classes, images, manifests, splits, tables
from rmam_jax.data.partition import partition
from rmam_jax.data.validation import validate
from rmam_jax.ops import losses
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import evaluate, pipeline, workdir

NAMES = ("bird", "cat", "dog", "traffic light")
LABELS = {"0.png": {"cat"}, "1.png": {"cat", "dog"}, "2.png": {"traffic light", "bird"}, "3.png": {"cat", "dog"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Four images that many manifests name."""
  folder = tmp_path_factory.mktemp("forms")
  write_images(folder, LABELS)
  return folder


def write_images(folder, names):
  folder.mkdir(parents=True, exist_ok=True)
  for number, name in enumerate(names):
    (folder / name).write_bytes(png(draw(["red"], [7, number])[0]))


def section(train, **changes):
  data = custom.get_config().data
  data.update({"train": str(train), **changes})
  return data


def read(path, **changes):
  """The labels that training sees, by image, and all notes."""
  data = section(path, **changes)
  split = splits.open_split(data, data.train)
  return {name: set(labels) for name, labels in split.listed()}, " ".join(split.notes)


def refused(path, match, **changes):
  with pytest.raises(UserError, match=match) as error:
    read(path, **changes)
  assert "\n" not in str(error.value)


def table(delimiter=",", labels="|", header=("image", "labels"), end="\n", row="{image}{delimiter}{labels}"):
  rows = [delimiter.join(header)] if header else []
  rows += [
    row.format(image=name, labels=labels.join(sorted(found)), delimiter=delimiter) for name, found in LABELS.items()
  ]
  return end.join(rows) + end


DIALECTS = {
  "plain.csv": table(),
  "UPPER.CSV": table(),
  "tabs.tsv": table("\t"),
  "text.txt": table("\t"),
  "commas.txt": table(),
  "tabs.csv": table("\t"),
  "semicolon.csv": table(";", end="\r\n"),
  "capitals.csv": table(header=("Image", "Labels")),
  "padded.csv": table(header=("image ", " labels"), row="{image} , {labels} "),
  "quoted.csv": table(row='"{image}","{labels}"', header=('"image"', '"labels"')),
  "carriage_returns.csv": table(end="\r"),
  "swapped.csv": table(header=("labels", "image"), row="{labels},{image}"),
  "index.csv": table(header=("", "image", "labels"), row="7,{image},{labels}"),
  "trailing.csv": table(header=("image", "labels", "", ""), row="{image},{labels},,") + ",,,\n,,\n",
  "extra.csv": table(header=("image", "labels", "split", "author"), row="{image},{labels},train,me"),
  "nih.csv": table(header=("Image Index", "Finding Labels")),
  "planet.csv": table(header=("image_name", "tags")),
  "hub.csv": table(header=("file_name", "label")),
  "lists.csv": table(labels="', '", row="{image},\"['{labels}']\""),
  "json.csv": table(labels='"", ""', row='{image},"[""{labels}""]"'),
  "twice.csv": table(row="{image},{labels}|{labels}"),
  "lines_in_a_field.csv": table(labels="|\n", row='{image},"{labels}"'),
  "choices.csv": table(labels='"", ""', row='{image},"{{""choices"": [""{labels}""]}}"'),
}


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_in_its_dialects(folder, name, encoding):
  (folder / name).write_bytes(DIALECTS[name].encode(encoding))
  found, notes = read(folder / name)
  assert found == LABELS
  assert ("'author'" in notes) == (name == "extra.csv")


def test_a_table_without_a_header_is_read_and_said_so(folder):
  (folder / "bare.csv").write_text(table(header=()))
  found, notes = read(folder / "bare.csv")
  assert found == LABELS
  assert "bare.csv:1: no header; the first column is taken for the images" in notes


def test_a_table_whose_first_line_tells_the_separator_or_a_negative(folder):
  (folder / "sep.csv").write_text("sep=;\n" + table(";", end="\r\n"))
  assert read(folder / "sep.csv")[0] == LABELS
  (folder / "bare.csv").write_text("0.png,\n1.png,cat\n")
  assert read(folder / "bare.csv")[0] == {"0.png": set(), "1.png": {"cat"}}
  (folder / "names.txt").write_text("0.png\n1.png\n")
  refused(folder / "names.txt", r"names\.txt:1: no column is known as that of the images")


def test_a_table_in_windows_s_letters(folder):
  (folder / "cp.csv").write_bytes("image,labels\n0.png,café\n".encode("cp1252"))
  found, notes = read(folder / "cp.csv")
  assert found == {"0.png": {"café"}}
  assert "not in UTF-8" in notes


def test_quotes_are_letters_of_a_name_and_control_characters_are_none(folder):
  (folder / "quotes.csv").write_text('image,labels\n0.png,5" disc\n1.png,"say ""hi"""\n')
  assert read(folder / "quotes.csv")[0] == {"0.png": {'5" disc'}, "1.png": {'say "hi"'}}
  (folder / "nul.csv").write_text("image,labels\n0.png,ca\0t\n")
  refused(folder / "nul.csv", r"nul\.csv:2: labels must be names that can be printed, .*, got 'ca\\x00t'")


@pytest.mark.parametrize("separator", [",", ";", " ", "/"])
def test_labels_that_look_joined_are_refused_until_a_field_says_what_they_are(folder, separator):
  rows = "".join(f'{name},"{separator.join(sorted(labels))}"\n' for name, labels in LABELS.items() if name != "2.png")
  (folder / "joined.csv").write_text(f"image,labels\n{rows}2.png,dog\n")
  refused(folder / "joined.csv", rf"the label 'cat{separator}dog' of .* looks like several: .*separator='{separator}'")
  found, _ = read(folder / "joined.csv", separator=separator)
  assert found == {name: labels if name != "2.png" else {"dog"} for name, labels in LABELS.items()}
  found, _ = read(folder / "joined.csv", separator="|")
  assert found["1.png"] == {f"cat{separator}dog"}


def test_a_name_with_a_blank_is_one_name(folder):
  assert classes.look_joined(["traffic light", "traffic"]) == []
  assert classes.look_joined(["traffic light", "traffic", "light"]) == [("traffic light", " ")]


def test_few_words_in_many_names_are_labels_with_blanks_between_them():
  """As tags of satellite images are, none of which stands alone."""
  assert classes.look_joined(["haze water", "clear road", "road clear"]) == [("clear road", " "), ("road clear", " ")]
  names = [f"{sky} {ground} {use}" for sky in ("haze", "clear") for ground in ("water", "road") for use in "abcd"]
  assert classes.look_joined(names) == [(name, " ") for name in sorted(names)]  # 16 names of 8 words
  assert classes.look_joined(["traffic light", "traffic sign", "stop light", "stop sign"]) == []


def test_labels_that_look_joined_are_not_left_out_for_chosen_classes(folder):
  (folder / "some.csv").write_text('image,labels\n0.png,bird\n1.png,"Cat,dog"\n2.png,cat\n3.png,"bird,big"\n')
  refused(
    folder / "some.csv", r"some\.csv:3: the label 'Cat,dog' looks like several: .*separator=','", classes=("cat",)
  )
  assert read(folder / "some.csv", classes=("cat",), separator=",")[0]["1.png"] == {"cat"}
  assert read(folder / "some.csv", classes=("cat",), separator="|")[0]["1.png"] == set()


@pytest.mark.parametrize("name", ["whole.jsonl", "whole.json"])
def test_what_stands_in_a_list_is_one_name_until_a_separator_is_named(folder, name):
  def write(*labels):
    rows = [{"image": f"{number}.png", "labels": each} for number, each in enumerate(labels)]
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    (folder / name).write_text(text)

  write(["cat|dog", "a,b"])
  assert read(folder / name)[0] == {"0.png": {"cat|dog", "a,b"}}
  write([0, 3])
  assert read(folder / name)[0] == {"0.png": {"0", "3"}}
  write(["cat,dog"], ["cat"], ["dog"])
  refused(folder / name, "the label 'cat,dog' of .* looks like several")
  assert read(folder / name, separator=",")[0]["0.png"] == {"cat", "dog"}
  write(["cat|dog"], ["cat"], ["dog"])
  refused(folder / name, r"separator='\|', or, if it is one name, --config\.data\.separator=','")
  assert read(folder / name, separator=",")[0]["0.png"] == {"cat|dog"}


def test_names_that_stand_by_themselves_are_not_looked_into(folder):
  (folder / "whole.csv").write_text("image,traffic,light,traffic light\n0.png,1,0,1\n")
  assert read(folder / "whole.csv")[0] == {"0.png": {"traffic", "traffic light"}}


def test_names_of_columns_may_be_given(folder):
  (folder / "odd.csv").write_text(table(header=("what", "who")))
  refused(folder / "odd.csv", r"odd\.csv:1: no column is known as that of the images; the columns are 'what', 'who'")
  assert read(folder / "odd.csv", columns="what,who")[0] == LABELS
  refused(folder / "odd.csv", r"data\.columns names 'whom'; the columns are 'what', 'who'", columns="what,whom")


ONE_HOT = "filename, bird, cat, dog, traffic light\n" + "".join(
  ", ".join([name, *(str(int(each in labels)) for each in NAMES)]) + "\n" for name, labels in LABELS.items()
)


@pytest.mark.parametrize("marks", ["[0, 1, 1, 0]", "[0 1 1 0]", "[0., 1., 1.]", "(1,0,0)"])
def test_a_list_of_0_and_1_names_no_classes(folder, marks):
  (folder / "marks.csv").write_text(f'image,labels\n0.png,"{marks}"\n')
  refused(folder / "marks.csv", r"marks\.csv:2: labels holds 0 and 1, .*: write names, or a column for each class")
  (folder / "marks.jsonl").write_text('{"image": "0.png", "labels": [0, 1, 1]}')
  refused(folder / "marks.jsonl", r"marks\.jsonl:1: labels holds 0 and 1, \[0, 1, 1\]")


@pytest.mark.parametrize("flag", ["0", "1", "false"])
def test_ignore_is_no_flag(folder, flag):
  match = rf"ignore must name labels that are neither present nor absent, got '?{flag}"
  (folder / "flag.csv").write_text(f"image,labels,ignore\n0.png,cat,\n1.png,dog,{flag}\n")
  refused(folder / "flag.csv", rf"flag\.csv:3: {match}")
  (folder / "flag.jsonl").write_text(f'{{"image": "0.png", "labels": ["cat"], "ignore": {flag}}}')
  refused(folder / "flag.jsonl", rf"(?i)flag\.jsonl:1: {match}.* is written as a list, \[\"{flag}\"\]")
  (folder / "flag.jsonl").write_text('{"image": "0.png", "labels": ["3"], "ignore": ["1"]}')
  assert read(folder / "flag.jsonl")[0] == {"0.png": {"3"}}
  (folder / "flag.csv").write_text("image,cat,ignore\n0.png,1,0\n1.png,0,1\n")
  data = section(folder / "flag.csv")
  split = splits.open_split(data, data.train)
  assert split.class_names == ("cat",)
  assert "columns that are not read: 'ignore'" in split.notes[0]


def test_columns_of_0_and_1(tmp_path):
  write_images(tmp_path, LABELS)
  path = tmp_path / "_classes.csv"
  path.write_text(ONE_HOT + "4.png, 0, 0, 0, -1\n")
  write_images(tmp_path, [*LABELS, "4.png"])
  for manifest in (path, tmp_path):  # the folder as well as its file
    data = section(manifest)
    split = splits.open_split(data, data.train)
    assert split.class_names == NAMES
    assert {name: set(labels) for name, labels in split.listed()} == LABELS | {"4.png": set()}
    np.testing.assert_array_equal(split[4].ignore, [False, False, False, True])
  assert read(path, classes=("cat", "dog"))[0]["2.png"] == set()
  path.write_text(ONE_HOT.replace("0.png, 0", "0.png, 3"))
  refused(path, r"_classes\.csv:2: the column 'bird' holds '3'; columns of classes hold 0 and 1")
  assert read(path, classes=("cat", "dog"))[0]["0.png"] == {"cat"}


def test_a_class_without_an_image_keeps_its_column(folder):
  (folder / "onehot.csv").write_text("image,cat,unicorn\n0.png,1,0\n1.png,0,0\n")
  data = section(folder / "onehot.csv")
  assert splits.open_split(data, data.train).class_names == ("cat", "unicorn")


def test_rows_of_one_image_are_joined(folder):
  rows = "".join(f"{name},{label}\n" for name, labels in LABELS.items() for label in labels)
  (folder / "rows.csv").write_text(f"image,labels\n{rows}./0.png,bird\n")
  found, notes = read(folder / "rows.csv")
  assert found == LABELS | {"0.png": {"cat", "bird"}}
  assert "joined where it has several: images 4, first 0.png" in notes
  lines = [("0.png", "cat"), ("0.png", "dog"), ("./0.png", "cat")]
  (folder / "rows.jsonl").write_text("\n".join(json.dumps({"image": name, "labels": [label]}) for name, label in lines))
  found, notes = read(folder / "rows.jsonl")
  assert found == {"0.png": {"cat", "dog"}}
  assert "joined where it has several: images 1, first 0.png" in notes


def test_a_column_split_chooses_rows(folder):
  rows = "".join(f"{name},{'|'.join(labels)},{'train' if name < '2' else 'val'}\n" for name, labels in LABELS.items())
  path = folder / "all.csv"
  path.write_text(f"image,labels,split\n{rows}")
  refused(
    path, r"its column 'split' holds 'train', 'val': name one of them, e\.g\. --config\.data\.train=all\.csv:train"
  )
  assert set(read(f"{path}:train")[0]) == {"0.png", "1.png"}
  refused(f"{path}:test", r"its column 'split' holds 'train', 'val', not 'test'")
  lines = [{"file_name": name, "labels": list(labels), "split": "a"} for name, labels in LABELS.items()]
  (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
  assert read(f"{folder / 'all.jsonl'}:a")[0] == LABELS
  lines[0]["split"] = None
  (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
  refused(folder / "all.jsonl", r"its column 'split' holds '', 'a': .* --config\.data\.train=all\.jsonl:a")


@pytest.mark.parametrize("nothing", ["", "nan", "None", "[]", "null", "[NaN]"])
def test_what_has_no_label_is_a_negative(folder, nothing):
  (folder / "negatives.csv").write_text(f"image,labels\n0.png,cat\n1.png,{nothing}\n")
  data = section(folder / "negatives.csv")
  split = splits.open_split(data, data.train)
  assert (len(split), split.dropped, split.class_names) == (2, 0, ("cat",))
  np.testing.assert_array_equal(split[1].labels, [0])
  assert not split[1].ignore.any()


def test_images_without_a_positive_take_no_part_in_the_loss_of_eq_8():
  scores = jax.random.normal(jax.random.key(0), (3, 4))
  labels = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], np.float32)
  alone = losses.classification_loss(scores[np.array([0, 2])], labels[[0, 2]])
  np.testing.assert_allclose(losses.classification_loss(scores, labels), alone * 2 / 3, rtol=1e-6)
  gradient = jax.grad(lambda x: losses.classification_loss(x, labels))(scores)
  assert not np.asarray(gradient)[1].any()
  assert np.asarray(gradient)[[0, 2]].any(axis=1).all()
  ignored = losses.classification_loss(scores, labels, ignore=labels == 1)
  assert float(ignored) == 0


def write_split(folder, split, count, negatives=0):
  rows = ["image,labels"]
  for i in range(count + negatives):
    names = [["red", "green", "blue"][i % 3]] if i < count else []
    (folder / f"{split}{i}.png").write_bytes(png(draw(names, [len(split), i])[0]))
    rows.append(f"{split}{i}.png,{'|'.join(names)}")
  (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
  return str(folder / f"{split}.csv")


@pytest.mark.slow
def test_negatives_are_trained_on_and_counted(tmp_path):
  paths = [write_split(tmp_path, split, 9, 5) for split in ("train", "val", "test")]
  config = thin_config(paths)
  results = pipeline.train_and_evaluate(config, tmp_path / "run")
  assert (results["test_images"], results["dropped_test_records"]) == (14, 0)
  scores = np.load(tmp_path / "run" / "scores.npz")
  assert scores["labels"].sum(axis=1).tolist() == [1] * 9 + [0] * 5
  # Precision at each positive, over all 14: the negatives among them push it down.
  ranks = np.argsort(np.argsort(-scores["network"][:, 0]))
  positive = np.sort(ranks[scores["labels"][:, 0] == 1])
  assert results["AP"]["blue"] == pytest.approx(np.mean((np.arange(3) + 1) / (positive + 1)))


def test_an_image_in_two_splits_is_refused_before_training(tmp_path):
  train, val, test = (write_split(tmp_path, split, 6) for split in ("train", "val", "test"))
  for paths, match in (
    ((train, val, train), "custom train and custom train share 6 of 6 images"),
    ((train, train, test), "share 6 of 6 images"),
    ((train, val, val), "nothing may be chosen on the test split"),
  ):
    with pytest.raises(UserError, match=match):
      pipeline.train_and_evaluate(thin_config(paths), tmp_path / "run")
  with open(test, "a") as file:
    file.write("train3.png,red\n")
  with pytest.raises(
    UserError, match=r"custom train and custom test share 1 of 7 images, the first .*train3\.png: an image"
  ):
    pipeline.train_and_evaluate(thin_config((train, val, test)), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  report = validate(thin_config((train, val, test)).data)
  assert [problem.split(": ")[1] for problem in report.problems] == [f"{tmp_path}/train3.png is in train as well"]


def test_the_same_names_in_two_folders_are_two_images(tmp_path):
  for split in ("a", "b"):
    write_images(tmp_path / split, ["0.png"])
    (tmp_path / split / "l.csv").write_text("image,labels\n0.png,cat\n")
  data = section(tmp_path / "a/l.csv", validation=str(tmp_path / "b/l.csv"))
  splits.check_disjoint({field: splits.open_split(data, data[field]) for field in ("train", "validation")})


@pytest.mark.slow
def test_evaluation_is_by_the_classes_that_were_trained(tmp_path):
  paths = [write_split(tmp_path, split, 6) for split in ("train", "val", "test")]
  config = thin_config(paths)
  pipeline.train_and_evaluate(config, tmp_path / "run")
  wanted = evaluate.evaluate(tmp_path / "run")["AP"]
  for path in paths:  # the same number of classes, in another order
    with open(path) as file:
      text = file.read()
    with open(path, "w") as file:
      file.write(text.replace("green", "zebra"))
  with pytest.raises(UserError, match=r"test\.csv:3: unknown label zebra; the classes are blue, green, red"):
    evaluate.evaluate(tmp_path / "run")
  with open(paths[2], "w") as file:  # the test split alone as it was
    file.write(text.replace("zebra", "green"))
  with pytest.raises(UserError, match="unknown label zebra"):
    evaluate.evaluate(tmp_path / "run")
  for path in paths[:2]:
    with open(path) as file:
      text = file.read()
    with open(path, "w") as file:
      file.write(text.replace("zebra", "green"))
  assert evaluate.evaluate(tmp_path / "run")["AP"] == wanted


def test_a_data_set_with_other_classes_than_the_model_s_is_refused(data_root):
  data = custom.get_config().data
  data.update({"name": "digits/tiny", "root": str(data_root)})
  with pytest.raises(UserError, match=r"digits/tiny test has the classes 10: .*; the model has 2: cat, dog"):
    splits.open_split(data, "test", class_names=("cat", "dog"))


def test_names_are_trimmed_and_composed(folder):
  decomposed = "cafe\N{COMBINING ACUTE ACCENT}"
  rows = [{"image": "0.png", "labels": ["cat "]}, {"image": "1.png", "labels": [" cat", decomposed]}]
  rows += [{"image": "2.png", "labels": ["caf\N{LATIN SMALL LETTER E WITH ACUTE}"]}]
  rows += [{"image": "3.png", "labels": ["traffic\N{NO-BREAK SPACE} light"]}]
  (folder / "names.jsonl").write_text("\n".join(map(json.dumps, rows)))
  found, _ = read(folder / "names.jsonl")
  assert found == {"0.png": {"cat"}, "1.png": {"cat", "café"}, "2.png": {"café"}, "3.png": {"traffic light"}}


@pytest.mark.parametrize(("one", "other"), [("Cat", "cat"), ("traffic-light", "traffic light"), ("\ufb01sh", "fish")])
def test_names_that_look_alike_are_refused_until_classes_are_named(folder, one, other):
  (folder / "alike.csv").write_text(f"image,labels\n0.png,{one}\n1.png,{other}\n2.png,dog\n")
  refused(folder / "alike.csv", f"the labels '{min(one, other)}' and '{max(one, other)}' of .* differ in capitals")
  found, notes = read(folder / "alike.csv", classes=(other, "dog"))
  assert found == {"0.png": {other}, "1.png": {other}, "2.png": {"dog"}}
  assert f"1 images: the label {one!r} is taken for {other!r}" in notes
  assert read(folder / "alike.csv", classes=(one, other))[0] == {"0.png": {one}, "1.png": {other}, "2.png": set()}


@pytest.mark.parametrize("given", [("cat", "bird"), ("cat,bird",), "file"])
def test_some_of_the_classes(folder, given):
  (folder / "chosen.txt").write_text("cat\nbird\n")
  given = (str(folder / "chosen.txt"),) if given == "file" else given
  (folder / "plain.csv").write_text(table())
  data = section(folder / "plain.csv", classes=given)
  split = splits.open_split(data, data.train)
  assert split.class_names == ("cat", "bird")
  assert [set(labels) for _, labels in split.listed()] == [labels & {"cat", "bird"} for labels in LABELS.values()]
  assert "left out: dog (2 images), traffic light (1 images)" in split.notes[-1]


def test_a_file_of_classes_is_one_or_is_missed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "lists").mkdir()
  for name in ("coco.names", "lists/classes"):
    (tmp_path / name).write_text("cat\ndog\n")
    assert classes.chosen((name,)) == ("cat", "dog")
  for name in ("klasses.txt", "lists/klasses.names", f"{tmp_path}/klasses"):
    with pytest.raises(UserError, match=r"data\.classes names the file .*klasses.*, which is not there"):
      classes.chosen((name,))
  assert classes.chosen((5, 7)) == ("5", "7")  # as a flag gives 5,7
  assert classes.chosen((5,)) == ("5",)
  for names in ("n/a", "car/truck,St. Bernard", ",".join(f"no. {number}" for number in range(300))):
    assert classes.chosen((names,)) == tuple(names.split(","))


def test_a_class_that_is_misspelt_is_noted(folder):
  (folder / "plain.csv").write_text(table())
  _, notes = read(folder / "plain.csv", classes=("dogg", "cat"))
  assert "data.classes names 'dogg', which no image has; is 'dog' meant, which is left out?" in notes


LINES = {
  "hub": [{"file_name": name, "labels": sorted(labels)} for name, labels in LABELS.items()],
  "text": [{"image": name, "labels": "|".join(labels)} for name, labels in LABELS.items()],
  "objects": [
    {"file_name": name, "objects": {"bbox": [[1, 2, 3, 4]] * len(labels), "categories": sorted(labels)}}
    for name, labels in LABELS.items()
  ],
  "more": [{"image": name, "labels": sorted(labels), "width": 3, "ignore": None} for name, labels in LABELS.items()],
}


@pytest.mark.parametrize("form", LINES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("written", ["lines.jsonl", "pretty.jsonl", "list.json"])
def test_objects_in_lines_and_lists(folder, form, encoding, written):
  rows = LINES[form]
  text = "\n".join(map(json.dumps, rows)) if written == "lines.jsonl" else json.dumps(rows, indent=1)
  (folder / written).write_bytes(text.encode(encoding))
  found, notes = read(folder / written)
  assert found == LABELS
  assert ("fields that are not read: 'width'" in notes) == (form == "more")


def test_an_object_without_labels_is_no_negative(folder):
  (folder / "odd.jsonl").write_text('{"image": "0.png", "objects": {"bbox": [[1, 2, 3, 4]]}}')
  refused(folder / "odd.jsonl", r"odd\.jsonl:1: labels must be names that can be printed")
  (folder / "tasks.json").write_text('[{"image": "0.png", "annotations": []}]')
  refused(folder / "tasks.json", r"the fields are 'image', 'annotations'\. Name them: --config\.data\.columns=IMAGE,")


def test_a_folder_of_the_hub(tmp_path):
  write_images(tmp_path, LABELS)
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, LINES["hub"])))
  assert read(tmp_path)[0] == LABELS


def coco(**changes):
  """COCO's form of `LABELS`, with a box for each label."""
  images_ = [{"id": n, "file_name": name, "width": 80, "height": 60} for n, name in enumerate(LABELS)]
  annotations = [
    {"id": 0, "image_id": n, "category_id": NAMES.index(label), "bbox": [8, 6, 16, 12]}
    for n, labels in enumerate(LABELS.values())
    for label in sorted(labels)
  ]
  categories = [{"id": n, "name": name} for n, name in enumerate(NAMES)]
  return {"images": images_, "annotations": annotations, "categories": categories} | changes


def each_of(field, **changes):
  """Every object of a COCO list with these changes; of None, without the field."""
  rows = [{k: v for k, v in (row | changes).items() if v is not None} for row in coco()[field]]
  return {field: rows}


def first_of(field, **changes):
  return {field: [coco()[field][0] | changes, *coco()[field][1:]]}


COCO_READ = {
  "plain": ({}, 7, ""),
  "no boxes": (each_of("annotations", bbox=None), 0, ""),
  "empty boxes": (each_of("annotations", bbox=[]), 0, ""),
  "no sizes": (
    each_of("images", width=None, height=None),
    0,
    "no size of the image is stated, so its boxes are left out",
  ),
  "sizes of 0": (each_of("images", width=0, height=0), 0, "no size of the image is stated"),
  "not a number": (
    first_of("annotations", bbox=[float("nan"), 1, 2, 3]),
    6,
    "the box of cat, .* is no box of finite numbers",
  ),
  "negative width": (first_of("annotations", bbox=[9, 1, -2, 3]), 6, r"\(1, 9, 4, 7\), is no box of finite numbers"),
  "outside": (first_of("annotations", bbox=[99, 1, 2, 3]), 6, "lies outside the image of 80 x 60: left out"),
  "half outside": (
    first_of("annotations", bbox=[70, 1, 20, 3]),
    7,
    "leaves the image of 80 x 60: cut off at its border",
  ),
  "ids as text": ({"annotations": [row | {"image_id": str(row["image_id"])} for row in coco()["annotations"]]}, 7, ""),
  "ids with gaps": (
    {
      "categories": [{"id": 7 + 10 * n, "name": name} for n, name in enumerate(NAMES)],
      "annotations": [row | {"category_id": 7 + 10 * row["category_id"]} for row in coco()["annotations"]],
    },
    7,
    "",
  ),
  "folders of Windows": (
    {"images": [row | {"file_name": f"images\\{row['file_name']}"} for row in coco()["images"]]},
    7,
    "there is no folder images/, which all images are said to lie in",
  ),
  "ignore as text": (each_of("annotations", ignore="0"), 7, ""),
  "crowds": (each_of("annotations", iscrowd=1), 7, ""),
  "capitals": (
    {"images": [row | {"file_name": row["file_name"].upper()} for row in coco()["images"]]},
    7,
    "taken for 0.PNG",
  ),
  "two names alike": (
    {
      "categories": [*coco()["categories"], {"id": 9, "name": "cat "}],
      **first_of("annotations", category_id=9),
    },
    7,
    "more than one is named 'cat'; they count as one class",
  ),
  "a file twice": (
    {"images": [*coco()["images"], {"id": 77, "file_name": "0.png", "width": 80, "height": 60}]},
    7,
    "joined where it has several: images 1, first 0.png",
  ),
}


@pytest.mark.parametrize("variant", COCO_READ)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_coco_in_its_variants(folder, variant, encoding):
  changes, boxes, note = COCO_READ[variant]
  path = folder / "coco.JSON"
  path.write_bytes(json.dumps(coco(**changes)).encode(encoding))
  found, notes = read(path)
  assert found == LABELS
  data = section(path)
  split = splits.open_split(data, data.train)
  assert sum(len(split[i].boxes) for i in range(len(split))) == boxes
  assert np.concatenate([split[i].boxes for i in range(len(split))] + [np.zeros((1, 4))]).max() <= 1
  assert (notes == "") == (note == "")
  import re

  assert re.search(note, notes)


def test_an_image_of_coco_without_annotations_is_a_negative(folder):
  (folder / "c.json").write_text(json.dumps(coco(annotations=coco()["annotations"][1:])))
  assert read(folder / "c.json")[0] == LABELS | {"0.png": set()}


COCO_REFUSED = {
  "a list as id": (first_of("images", id=[1]), r"images\[0\]: id is missing, or neither a number nor a text"),
  "an id twice": (first_of("images", id=1), r"images\[1\]: id 1 is a duplicate: one before it has it"),
  "an unknown category": (
    first_of("annotations", category_id=99),
    r"annotations\[0\]: category_id 99 is the id of no cat",
  ),
  "an unknown image": (first_of("annotations", image_id=99), r"annotations\[0\]: image_id 99 is the id of no image"),
  "a category without a name": (
    first_of("categories", name=None),
    r"the category with id 0 has no name that can be printed",
  ),
  "an address": (first_of("images", file_name="https://x.example/0.png"), "is an address: download the images first"),
  "no annotations": ({"annotations": None}, "an object with the lists images, annotations, categories"),
}


@pytest.mark.parametrize("variant", COCO_REFUSED)
def test_coco_that_cannot_be_meant_is_refused_in_words(folder, variant):
  changes, match = COCO_REFUSED[variant]
  (folder / "wrong.json").write_text(json.dumps(coco(**changes)))
  refused(folder / "wrong.json", match)


def test_json_that_is_cut_short(folder):
  (folder / "short.json").write_text(json.dumps(coco())[:-20])
  refused(folder / "short.json", "short.json: not valid JSON, or cut short")


@pytest.mark.parametrize("named", ["{}2017", "images/{}2017", "my {}"])
def test_coco_with_a_folder_for_each_split(tmp_path, named):
  (tmp_path / "annotations").mkdir()
  paths = []
  for split in ("train", "val", "test"):
    paths.append(tmp_path / f"annotations/instances_{split}2017.json")
    paths[-1].write_text(json.dumps(coco()))
    write_images(tmp_path / named.format(split), LABELS)
  data = section(paths[0], validation=str(paths[1]), test=str(paths[2]))
  if named == "my {}":
    refused(paths[0], "there is no image")
    data.images = ",".join(str(tmp_path / named.format(split)) for split in ("train", "val", "test"))
  for field, split in (("train", "train"), ("validation", "val"), ("test", "test")):
    assert splits.open_split(data, data[field])[0].path == str(tmp_path / named.format(split) / "0.png")
  data.images = "a,b"
  with pytest.raises(UserError, match=r"data\.images must be a folder, or three with commas"):
    splits.open_split(data, data.train)


@pytest.mark.parametrize("former", ["C:\\Users\\me\\photos\\", "/nowhere/photos/", "photos\\", "./photos/"])
def test_names_may_begin_with_a_folder_that_is_not_there_any_more(tmp_path, former):
  """Other parts of the names stand, so that two images remain two."""
  write_images(tmp_path / "here/a", ["0.png"])
  write_images(tmp_path / "here/b", ["0.png"])
  slash = "\\" if "\\" in former else "/"
  path = tmp_path / "l.csv"
  path.write_text(f"image,labels\n{former}a{slash}0.png,cat\n{former}b{slash}0.png,dog\n")
  refused(path, rf"none of its images lies below {tmp_path}|lies outside {tmp_path}: name that folder with")
  found, notes = read(path, images=str(tmp_path / "here"))
  assert found == {"a/0.png": {"cat"}, "b/0.png": {"dog"}}
  assert "which all images are said to lie in: they are in" in notes
  if former == "photos\\":  # where the folder is there, it is meant
    (tmp_path / "here/photos").mkdir()
    path.write_text(f"{path.read_text()}\n")
    refused(path, rf"there is no image {tmp_path}/here/photos/a/0\.png", images=str(tmp_path / "here"))
  path.write_text("image,labels\nhttps://x.example/a/0.png,cat\n")
  refused(path, "is an address", images=str(tmp_path / "here"))


def voc_xml(filename, labels, size="<size><width>80</width><height>60</height></size>", box=(8, 6, 24, 18)):
  edges = "".join(
    f"<{name}>{edge}</{name}>" for name, edge in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=bool(box))
  )
  boxes = f"<bndbox>{edges}</bndbox>" if box else ""
  objects = "".join(f"<object><name>{label}</name>{boxes}</object>" for label in sorted(labels))
  return f"<annotation><folder>x</folder><filename>{filename}</filename>{size}{objects}</annotation>"


def write_voc(folder, xml="Annotations", where="JPEGImages", suffix=".xml", **changes):
  write_images(folder / where, LABELS)
  (folder / xml).mkdir(parents=True, exist_ok=True)
  for name, labels in LABELS.items():
    stem = name.removesuffix(".png")
    (folder / xml / f"{stem}{suffix}").write_text(
      voc_xml(
        changes.get("filename", "{}.png").format(stem),
        labels,
        **{key: value for key, value in changes.items() if key != "filename"},
      )
    )


VOC_READ = {
  "plain": {},
  "names without ending": {"filename": "{}"},
  "old names": {"filename": "/home/me/photos/old{}.jpeg"},
  "no names": {"filename": ""},
  "capitals": {"suffix": ".XML"},
  "beside the images": {"xml": "", "where": ""},
  "small letters": {"xml": "annotations", "where": "images"},
  "in folders": {"xml": "a/b", "where": "a/b"},
  "behind links": {"xml": "a/b", "where": "a/b"},
  "no boxes": {"box": ()},
  "no size": {"size": ""},
  "a size of 0": {"size": "<size><width>0</width><height>0</height></size>"},
  "an empty size": {"size": "<size><width></width><height/></size>"},
}


@pytest.mark.parametrize("variant", VOC_READ)
def test_voc_in_its_variants(tmp_path, variant):
  write_voc(tmp_path, **VOC_READ[variant])
  (tmp_path / VOC_READ[variant].get("xml", "Annotations") / "._0.xml").write_bytes(b"\0\5\x16\7Mac OS X")
  if variant == "behind links":
    (tmp_path / "a").rename(tmp_path.parent / f"{tmp_path.name} elsewhere")
    (tmp_path / "a").symlink_to(tmp_path.parent / f"{tmp_path.name} elsewhere")
  data = section(tmp_path)
  split = splits.open_split(data, data.train)
  assert {name.rsplit("/", 1)[-1]: set(labels) for name, labels in split.listed()} == LABELS
  boxes = [split[i].boxes for i in range(len(split))]
  if "box" in VOC_READ[variant] or "size" in VOC_READ[variant]:
    assert not any(map(len, boxes))
  else:
    np.testing.assert_allclose(boxes[0], [[0.1, 0.1, 0.3, 0.3]], atol=1e-6)


@pytest.mark.parametrize("where", ["JPEGImages", ""])
def test_xml_of_a_changed_copy_that_keeps_the_old_name_is_of_the_copy(tmp_path, where):
  write_images(tmp_path / where, ["0.png", "0_flip.png"])
  (tmp_path / "Annotations/more").mkdir(parents=True)
  for place, label in (("0", "cat"), ("0_flip", "dog"), ("more/1", "bird")):  # 1.png is not there
    (tmp_path / f"Annotations/{place}.xml").write_text(voc_xml("0.png", {label}))
  found, notes = read(tmp_path)
  assert found == {"0.png": {"cat", "bird"}, "0_flip.png": {"dog"}}
  assert "0_flip.png is taken for 0.png" in notes
  assert "joined where it has several: images 1, first 0.png" in notes


def test_xml_in_folders_of_several_that_have_the_same_names(tmp_path):
  """An image beside its annotation is its own, whatever lies above them."""
  for number, place in enumerate(["", "a", "b"]):
    write_images(tmp_path / place, ["0.png"])
    (tmp_path / place / "0.xml").write_text(voc_xml("0.png", {NAMES[number]}))
  assert read(tmp_path)[0] == {"0.png": {"bird"}, "a/0.png": {"cat"}, "b/0.png": {"dog"}}


@pytest.mark.parametrize(
  "encoded",
  [
    b"<?xml version='1.0' encoding='gbk'?>" + voc_xml("0.png", {"点焊"}).encode("gbk"),
    voc_xml("0.png", {"点焊"}).encode("utf-8-sig"),
    b"\xff\xfe" + ("<?xml version='1.0' encoding='utf-16'?>" + voc_xml("0.png", {"点焊"})).encode("utf-16-le"),
    b"<?xml version='1.0'?><!DOCTYPE annotation SYSTEM 'voc.dtd'>" + voc_xml("0.png", {"点焊"}).encode(),
  ],
)
def test_xml_in_its_encodings(tmp_path, encoded):
  write_images(tmp_path, ["0.png"])
  (tmp_path / "0.xml").write_bytes(encoded)
  assert read(tmp_path)[0] == {"0.png": {"点焊"}}


@pytest.mark.parametrize("head", ["", "<?xml version='1.0' encoding='utf-8'?>"])
def test_xml_in_windows_s_letters_that_says_nothing_of_them(tmp_path, head):
  write_images(tmp_path, ["0.png"])
  (tmp_path / "0.xml").write_bytes((head + voc_xml("0.png", {"café"})).encode("cp1252"))
  assert read(tmp_path)[0] == {"0.png": {"café"}}


def test_objects_without_a_name_and_empty_files_are_named(tmp_path):
  write_voc(tmp_path)
  (tmp_path / "Annotations/0.xml").write_text("")
  (tmp_path / "Annotations/1.xml").write_text(voc_xml("1.png", {""}))
  refused(tmp_path, r"0\.xml: an empty file; .*1\.xml: object 0 has no name")


STEMS = ("plain_1", "my photo 2", "IMG (3)", "ünïcode_4", "50%_5", "a.b.c_6")
LISTS = {
  "names": "\n".join(STEMS),
  "endings": "\n".join(f"{stem}.jpg" for stem in STEMS),
  "quotes": "\r\n".join(f'"{stem}"' for stem in STEMS),
  "mark": "\ufeff" + "\n".join(STEMS),
  "class": "\n".join(f"{stem} {mark}" for stem, mark in zip(STEMS, (" 1", "-1", " 0", "1", "1", "-1"), strict=True)),
  "decomposed": "\n".join(STEMS).replace("ü", "u\N{COMBINING DIAERESIS}"),
}


@pytest.mark.parametrize("form", LISTS)
def test_lists_of_a_voc_folder(tmp_path, form):
  write_images(tmp_path / "JPEGImages", [f"{stem}.jpg" for stem in (*STEMS, "other")])
  for part in ("Annotations", "ImageSets/Main"):
    (tmp_path / part).mkdir(parents=True)
  for stem in (*STEMS, "other"):
    (tmp_path / "Annotations" / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", {"cat"}))
  (tmp_path / "ImageSets/Main/train.txt").write_text(LISTS[form], encoding="utf-8")
  found, _ = read(f"{tmp_path}:train")
  assert set(found) == {f"{stem}.jpg" for stem in STEMS}
  refused(f"{tmp_path}:val", r"val\.txt: missing; there is train")
  (tmp_path / "ImageSets/Main/empty.txt").write_text("\n")
  refused(f"{tmp_path}:empty", r"empty\.txt: it names no image")
  (tmp_path / "ImageSets/Main/train.txt").write_text("plain_1\nabsent\n")
  refused(f"{tmp_path}:train", r"train\.txt:2: there is no annotation absent\.xml")


def test_a_voc_list_that_names_an_image_twice_or_two_annotations(tmp_path):
  write_voc(tmp_path)
  (tmp_path / "ImageSets/Main").mkdir(parents=True)
  (tmp_path / "ImageSets/Main/train.txt").write_text("0\n1\n0.png\n")
  data = section(f"{tmp_path}:train")
  split = splits.open_split(data, data.train)
  assert [len(split[i].boxes) for i in range(len(split))] == [1, 2]
  (tmp_path / "Annotations/old").mkdir()
  (tmp_path / "Annotations/old/1.xml").write_text(voc_xml("1.png", {"cat"}))
  refused(
    data.train, r"train\.txt:2: there are \S*Annotations/1\.xml and \S*Annotations/old/1\.xml: give them different"
  )


BAD_BOXES = {
  (-20, -5, 40, 30): "leaves the image",
  (70, 50, 20, 10): "is no box of finite numbers with an area",
  (10, 10, 900, 800): "leaves the image",
  ("nan", "nan", "nan", "nan"): "is no box",
  (10, 10, 10, 10): "is no box",
  (10, 50, 60, 10): "is no box",
  (60, 10, 10, 50): "is no box",
  ("1e400", 0, 5, 5): "is no box",
  (90, 70, 95, 75): "lies outside the image",
}


@pytest.mark.parametrize("box", BAD_BOXES)
def test_boxes_that_cannot_be_are_named_and_their_labels_kept(tmp_path, box):
  write_images(tmp_path, ["0.png"])
  (tmp_path / "0.xml").write_text(voc_xml("0.png", {"cat"}, box=box))
  found, notes = read(tmp_path)
  assert found == {"0.png": {"cat"}}
  assert BAD_BOXES[box] in notes
  data = section(tmp_path)
  boxes = splits.open_split(data, data.train)[0].boxes
  assert len(boxes) == ("leaves" in BAD_BOXES[box])
  assert ((boxes >= 0) & (boxes <= 1)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["stored", "upright"])
@pytest.mark.parametrize("kind", ["png", "tiff"])  # Pillow states the size of the one as stored, of the other upright
def test_boxes_are_those_of_the_image_as_it_is_shown(tmp_path, orientation, frame, kind):
  """Of photographs on their side, whether the tool that stated boxes paid attention to EXIF or not."""
  upright = np.full((60, 80, 3), 90, np.uint8)
  box = np.array([10, 40, 25, 72])  # top, left, bottom, right
  upright[box[0] : box[2], box[1] : box[3]] = (250, 20, 30)
  exif = Image.Exif()
  exif[0x0112] = orientation
  back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Pillow's numbers of the inverse turns
  stored = Image.fromarray(upright)
  stored = stored if back is None else stored.transpose(Image.Transpose(back))
  file = io.BytesIO()
  stored.save(file, kind, exif=exif)
  (tmp_path / f"0.{kind}").write_bytes(file.getvalue())
  np.testing.assert_array_equal(images.decode_image(file.getvalue(), ""), upright)
  shown = upright if frame == "upright" else np.asarray(stored)
  if frame == "stored" and orientation in (2, 3, 4):
    pytest.skip("the stated size does not tell: validation says so")
  rows, columns = np.nonzero(shown[..., 0] > 200)
  edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
  size = f"<size><width>{shown.shape[1]}</width><height>{shown.shape[0]}</height></size>"
  (tmp_path / "0.xml").write_text(voc_xml(f"0.{kind}", {"cat"}, size=size, box=edges))
  data = section(tmp_path)
  record = splits.open_split(data, data.train)[0]
  np.testing.assert_allclose(record.boxes, [box / [60, 80, 60, 80]], atol=1e-6)
  notes = " ".join(validate(data).notes)
  assert ("they are turned" in notes) == (frame == "stored" and orientation > 4)
  assert ("its boxes are taken for those of the upright image" in notes) == (orientation in (2, 3, 4))


def test_an_annotation_of_another_shape_is_noted(tmp_path):
  write_images(tmp_path, ["0.png"])
  (tmp_path / "0.xml").write_text(voc_xml("0.png", {"cat"}, size="<size><width>80</width><height>80</height></size>"))
  assert (
    "0.png is 80 x 60, its annotation says 80 x 80: its boxes may be those of another"
    in validate(section(tmp_path)).notes[-1]
  )


def test_label_studio_s_export(tmp_path):
  write_images(tmp_path, ["0.png", "3f2a9c1b-1.png", "2.png"])
  region = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["dog"]}
  tasks = [
    {
      "id": 1,
      "data": {"image": "/data/upload/1/1a2b3c4d-0.png"},
      "annotations": [
        {"was_cancelled": True, "result": [{"type": "choices", "value": {"choices": ["bird"]}}]},
        {"result": [{"type": "choices", "value": {"choices": ["cat"]}}, {"type": "rectanglelabels", "value": region}]},
      ],
    },
    {"id": 2, "data": {"image": "/data/upload/1/3f2a9c1b-1.png"}, "annotations": [{"result": []}]},
    {"id": 3, "data": {"image": "/data/upload/1/5e6f-2.png"}, "annotations": []},
  ]
  path = tmp_path / "tasks.json"
  path.write_text(json.dumps(tasks))
  found, notes = read(path)
  assert found == {"0.png": {"cat", "dog"}, "3f2a9c1b-1.png": set()}
  assert "5e6f-2.png has not been annotated: left out" in notes
  data = section(path)
  np.testing.assert_allclose(splits.open_split(data, data.train)[0].boxes, [[0.2, 0.1, 0.6, 0.4]], atol=1e-6)
  short = [
    {"image": "/data/upload/1/abc-0.png", "id": 1, "choice": {"choices": ["cat", "dog"]}, "annotator": 1},
    {"image": "/data/upload/1/abc-2.png", "id": 2, "choice": "cat", "label": [region], "lead_time": 3.5},
  ]
  path.write_text(json.dumps(short))
  assert read(path)[0] == {"0.png": {"cat", "dog"}, "2.png": {"cat", "dog"}}


def test_label_studio_s_short_form_with_fields_of_the_user_s_own_naming(tmp_path):
  """Its exporter writes one choice as a text, as it writes a remark, and choices by region as a list of texts."""
  write_images(tmp_path, ["0.png", "1.png", "2.png", "my photo.png"])
  own = {"annotator": "ann@example.org", "annotation_id": 5, "created_at": "2026-01-02T03:04:05Z", "lead_time": 3.5}
  rows = [
    {"image": "/data/upload/1/abc-0.png", "id": 1, "animal": "cat"},
    {"image": "/data/upload/1/abc-1.png", "id": 2, "animal": {"choices": ["cat", "dog"]}},
    {"image": "/data/local-files/?d=my%20photo.png", "id": 3, "animal": ["dog", "bird"], "comment": "blurred"},
    {"image": "/data/upload/1/abc-2.png", "id": 4},
  ]
  path = tmp_path / "short.json"
  path.write_text(json.dumps([row | own for row in rows]))
  refused(path, r"short\.json\[0\]: whether 'animal' is a label or a remark cannot be told: .*columns=image,LABELS")
  found, notes = read(path, columns="image,animal")
  assert found == {"0.png": {"cat"}, "1.png": {"cat", "dog"}, "my photo.png": {"dog", "bird"}, "2.png": set()}
  assert "fields that are not read: 'comment'" in notes
  path.write_text(
    json.dumps([{"choice" if name == "animal" else name: each for name, each in row.items()} for row in rows])
  )
  assert read(path) == (found, notes)


def test_a_choice_beside_regions_is_not_lost(tmp_path):
  write_images(tmp_path, ["0.png"])
  path = tmp_path / "short.json"
  region = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["dog"]}
  path.write_text(json.dumps([{"image": "/data/upload/1/abc-0.png", "id": 1, "label": [region], "scene": "night"}]))
  refused(path, r"short\.json\[0\]: whether 'scene' is a label or a remark")
  found, notes = read(path, columns="image,label")
  assert found == {"0.png": {"dog"}}
  assert "fields that are not read: 'scene'" in notes
  assert read(path, columns="image,scene")[0] == {"0.png": {"night"}}


def test_an_object_with_an_id_and_a_whole_path_is_no_task_of_label_studio_s(tmp_path):
  write_images(tmp_path / "images", ["0.png"])
  path = tmp_path / "l.json"
  path.write_text(
    '[{"id": 1, "image": "/data/images/0.png", "labels": "cat|dog", "split": "train", "ignore": ["bird"]}]'
  )
  data = section(f"{path}:train")
  split = splits.open_split(data, data.train)
  assert split.listed() == [("images/0.png", ["cat", "dog"])]
  np.testing.assert_array_equal(split[0].ignore, [True, False, False])


def test_cvat_s_export(tmp_path):
  write_images(tmp_path / "images", ["0.png", "1.png"])
  path = tmp_path / "annotations.xml"
  path.write_text(
    "<annotations><version>1.1</version><meta><task/></meta>"
    '<image id="0" name="0.png" width="80" height="60"><tag label="cat"/>'
    '<box label="dog" xtl="8" ytl="6" xbr="24" ybr="18"/><polygon label="bird" points="1,2;3,4"/></image>'
    '<image id="1" name="1.png" width="80" height="60"/></annotations>'
  )
  assert read(path)[0] == {"0.png": {"cat", "dog", "bird"}, "1.png": set()}
  data = section(path)
  np.testing.assert_allclose(splits.open_split(data, data.train)[0].boxes, [[0.1, 0.1, 0.3, 0.3]], atol=1e-6)
  path.write_text("<other/>")
  refused(path, "not as CVAT exports images: its root is <other>")


def test_parts_share_out_every_label_alike():
  rng = np.random.default_rng(0)
  names = ["common", "usual", "rare", "single"]
  labels = [
    [name for name, share in zip(names, (0.5, 0.2, 0.03), strict=False) if rng.random() < share] for _ in range(1000)
  ]
  labels[17].append("single")
  ids = [f"{i}.jpg" for i in range(1000)]
  part = partition(labels, ids, (0.8, 0.1, 0.1))
  assert np.bincount(part).tolist() == pytest.approx([800, 100, 100], abs=5)
  for name in names[:3]:
    held = np.array([name in each for each in labels])
    counts = np.bincount(part[held], minlength=3)
    np.testing.assert_allclose(counts, held.sum() * np.array([0.8, 0.1, 0.1]), atol=1.01)
  assert part[17] == 0  # a label of one image can be learned, and not measured
  order = rng.permutation(1000)
  again = partition([labels[i] for i in order], [ids[i] for i in order], (0.8, 0.1, 0.1))
  np.testing.assert_array_equal(again, part[order])


@pytest.mark.parametrize("shares", [(0.8, 0.3), (1.0,), (0.5, 0.5, 0.0), (0.25, 0.25, 0.25, 0.25)])
def test_shares_that_are_none(shares):
  with pytest.raises(UserError, match=r"data\.split must be two or three shares whose sum is 1"):
    partition([["a"]] * 9, list("abcdefghi"), shares)
  with pytest.raises(UserError, match="leaves nothing for validation: 2 images are too few"):
    partition([["a"]] * 2, list("ab"), (0.8, 0.1, 0.1))


def test_shares_that_are_no_numbers(folder):
  (folder / "plain.csv").write_text(table())
  data = section(folder / "plain.csv", split=("a,b,c",))
  with pytest.raises(UserError, match=r"data\.split must be shares, as in 0\.8,0\.1,0\.1; got \('a,b,c',\)"):
    splits.open_split(data, data.train)


def test_a_run_knows_its_classes_by_name_and_not_by_a_file(tmp_path):
  (tmp_path / "mine.txt").write_text("red\nblue\n")
  assert splits.resolved(section("a.csv", classes=(str(tmp_path / "mine.txt"),))) == {"classes": ("red", "blue")}
  assert splits.resolved(section("a.csv")) == {}


def test_one_list_becomes_three_splits(tmp_path):
  path = write_split(tmp_path, "all", 24, 6)
  config = thin_config((path, "", ""), split=(0.6, 0.2, 0.2))
  results = pipeline.train_and_evaluate(config, tmp_path / "run")
  assert results["test_images"] == 6
  written = {
    part: (tmp_path / "run/split" / f"{part}.csv").read_text().splitlines() for part in ("train", "validation", "test")
  }
  assert {part: len(lines) - 1 for part, lines in written.items()} == {"train": 18, "validation": 6, "test": 6}
  rows = [line for lines in written.values() for line in lines[1:]]
  with open(path) as file:
    assert sorted(rows) == sorted(file.read().splitlines()[1:])
  saved = workdir.read_config(tmp_path / "run").data
  assert (saved.train, saved.validation, saved.test) == tuple(f"{path}:{part}" for part in written)
  assert evaluate.evaluate(tmp_path / "run")["AP"] == results["AP"]
  assert pipeline.train_and_evaluate(config, tmp_path / "run")["AP"] == results["AP"]
  with pytest.raises(UserError, match=r"leave data\.validation, data\.test and data\.final_train empty"):
    splits.resolved(thin_config((path, path, ""), split=(0.6, 0.4)).data)
  with pytest.raises(UserError, match=r"data\.split makes train, validation of .*, not 'test'"):
    splits.open_split(section(f"{path}:test", split=(0.5, 0.5)), f"{path}:test")


def test_a_manifest_is_read_once_a_run(tmp_path, monkeypatch):
  path = write_split(tmp_path, "all", 24)
  reads = []
  read_csv = tables.read_csv
  monkeypatch.setattr(tables, "read_csv", lambda *arguments: reads.append(arguments) or read_csv(*arguments))
  pipeline.train_and_evaluate(thin_config((path, "", ""), split=(0.5, 0.25, 0.25)), tmp_path / "run")
  assert len(reads) == 1


def test_a_table_is_read_once_for_all_that_its_column_split_names(folder, monkeypatch):
  reads, read_csv = [], tables.read_csv
  monkeypatch.setattr(tables, "read_csv", lambda *arguments: reads.append(arguments) or read_csv(*arguments))
  rows = "".join(f"{name},cat,{'ab'[name > '1.png']}\n" for name in LABELS)
  (folder / "once.csv").write_text(f"image,labels,split\n{rows}")
  data = section(f"{folder / 'once.csv'}:a", validation=f"{folder / 'once.csv'}:b")
  assert [len(splits.open_split(data, data[field])) for field in ("train", "validation", "train")] == [2, 2, 2]
  assert len(reads) == 1


ROWS = 20_000


def rows_of_a_table(path):
  """Names of images that nobody has, with labels."""
  names = [f"folder/{number:07d}.jpg" for number in range(ROWS)]
  labels = ["|".join(sorted(LABELS[f"{number % 4}.png"])) for number in range(ROWS)]
  path.write_text("image,labels\n" + "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True)))
  return names


def rows_of_coco(path):
  """Images of 600 x 400 with seven objects each, as outlined as COCO's are."""
  names = [f"folder/{number:07d}.jpg" for number in range(ROWS // 4)]
  images = [{"id": i, "file_name": name, "width": 600, "height": 400} for i, name in enumerate(names)]
  objects = [
    {
      "id": i,
      "image_id": i % len(names),
      "category_id": i % 7 % 4,
      "bbox": [i % 500, 1.5, 20, 30.25],
      "segmentation": [[0.5] * 40],
    }
    for i in range(7 * len(names))
  ]
  categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
  path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
  return names


@pytest.mark.parametrize(
  ("name", "write", "kept", "most"),
  [
    ("a.csv", rows_of_a_table, 200, 500),
    pytest.param("a.json", rows_of_coco, 700, 6_000, marks=pytest.mark.slow),
  ],
)
def test_a_million_rows_would_fit_into_memory(tmp_path, monkeypatch, name, write, kept, most):
  """Bytes for each image: what a manifest keeps and what reading it takes at most, without the names of the files."""
  names = write(tmp_path / name)
  (tmp_path / "folder").mkdir()
  there = [each.removeprefix("folder/") for each in names]
  monkeypatch.setattr(manifests.os, "listdir", lambda folder: there if str(folder).endswith("folder") else [])
  data = section(tmp_path / name)
  tables.labels_of("cat", "|")  # the first call imports
  tracemalloc.start()
  try:
    parsed = manifests.parse(str(tmp_path / name), data)
    now, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert not parsed.problems
  assert len(parsed.entries) == len(names)
  assert set(parsed.entries[1].labels) == (LABELS["1.png"] if name == "a.csv" else set(NAMES))
  assert now / len(names) < kept
  assert peak / len(names) < most


def test_files_that_are_not_there_stop_training_unless_they_may_be_skipped(folder):
  (folder / "gone.csv").write_text("image,labels\n0.png,cat\ngone.png,cat\n")
  refused(folder / "gone.csv", rf"gone\.csv:3: there is no image {folder}/gone\.png")
  data = section(folder / "gone.csv", corrupt="skip")
  assert len(splits.open_split(data, data.train)) == 2
  assert "there is no image" in " ".join(validate(data).notes)


def test_what_cannot_be_read_stops_no_training_that_skips_it(tmp_path):
  write_images(tmp_path, ["0.png", "1.png"])
  (tmp_path / "1.png").write_bytes(b"no image")
  (tmp_path / "2.png").mkdir()
  (tmp_path / "l.csv").write_text("image,labels\n0.png,cat\n1.png,cat\n2.png,cat\n")
  found = {corrupt: validate(section(tmp_path / "l.csv", corrupt=corrupt)) for corrupt in ("error", "skip")}
  assert [len(found["error"].problems), found["skip"].problems] == [2, []]
  assert set(found["error"].problems) < set(found["skip"].notes)


@pytest.mark.parametrize("field", ["train", "validation", "test"])
def test_a_split_without_a_label_stops_training_and_validation_says_so(tmp_path, field):
  names = ["train", "validation", "test"]
  write_images(tmp_path, [f"{name}.png" for name in names])
  for name in names:
    labels = "" if name == field else "cat"
    (tmp_path / f"{name}.csv").write_text(f"image,labels,ignore\n{name}.png,{labels},\n")
  data = section(tmp_path / "train.csv", validation=f"{tmp_path}/validation.csv", test=f"{tmp_path}/test.csv")
  data.classes = ("cat",)
  with pytest.raises(UserError, match="no record has a positive label"):
    splits.open_split(data, data[field])
  assert [problem.partition(": ")[0] for problem in validate(data).problems] == [data[field]]
  (tmp_path / f"{field}.csv").write_text(f"image,labels,ignore\n{field}.png,,cat\n")
  for difficult, count in (("ignore", 1), ("positive", 0)):
    data.difficult = difficult
    assert len(validate(data).problems) == count


def test_what_is_wrong_with_one_list_is_said_once_for_its_parts(tmp_path):
  names = [f"{number}.png" for number in range(9)]
  write_images(tmp_path, names[:-1])
  path = tmp_path / "l.csv"
  path.write_text("image,labels\n" + "".join(f"{name},cat\n" for name in [*names, names[0]]) + "a,b,c,d\n")
  data = section(path, split=(0.6, 0.2, 0.2))
  data.update(splits.resolved(data))
  report = validate(data)
  assert [problem.partition(": ")[0] for problem in report.problems] == [f"{path}:12", f"{path}:10"]
  assert sum("rows of an image are joined" in note for note in report.notes) == 1
  data.corrupt = "skip"
  assert len(validate(data).problems) == 1


def call(*flags):
  command = [sys.executable, "-m", "rmam_jax", "validate", *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_validation_caps_what_repeats_and_stops_for_what_stops_training(tmp_path):
  write_images(tmp_path, [f"{i}.png" for i in range(12)])
  rows = "".join(f"{i}.png,No Finding\n" for i in range(12))
  (tmp_path / "train.csv").write_text(f"image,labels\n{rows}0.png,cat\n")
  found = call(f"--config.data.train={tmp_path / 'train.csv'}")
  assert found.returncode == 0, found.stderr
  assert "note: class No Finding reads as if there were nothing" in found.stdout
  assert found.stdout.splitlines()[-1] == "nothing stops training"
  (tmp_path / "val.csv").write_text("image,labels\n" + "".join(f"9.png,what{i}\n" for i in range(300)))
  many = call(f"--config.data.train={tmp_path / 'train.csv'}", f"--config.data.validation={tmp_path / 'val.csv'}")
  assert many.returncode == 1
  assert len(many.stdout) < 5_000
  every = call(
    f"--config.data.train={tmp_path / 'train.csv'}",
    "--config.data.split=0.5,0.25,0.25",
    "--show=0",
    "--config.data.test=x",
  )
  assert every.stderr.splitlines()[-1].startswith("error: data.split makes validation and test of data.train")
