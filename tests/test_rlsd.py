"""RLSD: the region proposal network, the labels read from its regions, and runs from end to end."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import coco, common, custom, digits, voc
from rmam_jax import recognizer
from rmam_jax.data.splits import open_split
from rmam_jax.heads import rpn as rpn_lib
from rmam_jax.inference import predictor
from rmam_jax.ops import boxes as boxes_lib
from rmam_jax.ops import rlsd, rpn
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError
from rmam_jax.training import checkpoints, evaluate, exported, loop, pipeline, stages, workdir
from rmam_jax.training import rpn as rpn_training
from rmam_jax.training import step as step_lib

WHOLE = [0, 0, 1, 1]


def random_boxes(rng, count):
  return np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)


def test_anchor_boxes_by_hand():
  # Cells of 4 pixels on an image of 8 x 12: 8 wide and 4 high around (2, 2) reaches from -2 to 6 and from 0 to 4.
  found = rpn.anchor_boxes((2, 3), ((8, 4), (4, 4)), 4)
  assert found.shape == (12, 4)
  np.testing.assert_allclose(found[0], [0, -2 / 12, 4 / 8, 6 / 12], atol=1e-6)
  np.testing.assert_allclose(found[1], [0, 0, 4 / 8, 4 / 12], atol=1e-6)
  np.testing.assert_allclose(found[-1], [4 / 8, 8 / 12, 1, 1], atol=1e-6)  # the last row's last column


def test_offsets_by_hand_and_back():
  anchor = jnp.array([0.2, 0.4, 0.6, 0.6])  # centre (0.5, 0.4), 0.2 wide, 0.4 high
  box = rpn.apply_offsets(anchor, jnp.array([0.5, -0.25, np.log(2), np.log(0.5)]))
  np.testing.assert_allclose(box, [0.2, 0.4, 0.4, 0.8], atol=1e-6)  # centre (0.6, 0.3), 0.4 wide, 0.2 high
  np.testing.assert_allclose(rpn.apply_offsets(anchor, jnp.zeros(4)), anchor, atol=1e-6)
  rng = np.random.default_rng(0)
  anchors, boxes = (random_boxes(rng, 50) + np.array([0, 0, 0.01, 0.01], np.float32) for _ in range(2))
  again = rpn.apply_offsets(anchors, rpn.find_offsets(anchors, boxes))
  np.testing.assert_allclose(again, boxes, atol=1e-5)


def test_iou_is_the_same_for_jax_and_for_numpy():
  rng = np.random.default_rng(0)
  a, b = random_boxes(rng, 30), random_boxes(rng, 20)
  b[3] = b[4] = 0.5  # empty
  np.testing.assert_allclose(
    boxes_lib.box_iou(jnp.asarray(a), jnp.asarray(b)), boxes_lib.box_iou(np.asarray(a), np.asarray(b)), atol=1e-6
  )


def test_matching_by_hand():
  boxes = jnp.array([[0.0, 0, 0.4, 0.4], [0.6, 0.6, 1, 1], [0, 0, 0, 0]])  # the last is padding
  anchors = jnp.array(
    [
      [0.0, 0, 0.4, 0.32],  # IoU 0.8 with the first
      [0.0, 0, 0.4, 0.2],  # 0.5 with it: neither
      [0.0, 0, 0.4, 0.1],  # 0.25: nothing
      [0.6, 0.6, 1, 0.84],  # 0.6 with the second, and its best
      [0.6, 0.6, 1, 0.8],  # 0.5 with it: neither
      [0.4, 0.4, 0.6, 0.6],  # nothing
      [0.0, 0, 0.4, 0.3],  # 0.75 with the first
    ]
  )
  match = jax.jit(rpn.match)
  positive, negative, stands_for = match(anchors, boxes)
  np.testing.assert_array_equal(positive, [True, False, False, True, False, False, True])
  np.testing.assert_array_equal(negative, [False, False, True, False, False, True, False])
  np.testing.assert_array_equal(stands_for[np.array([0, 3, 6])], [0, 1, 0])
  nothing = match(anchors, jnp.zeros((3, 4)))
  assert not nothing[0].any()
  assert nothing[1].all()


def test_an_anchor_box_that_is_the_best_of_one_box_stands_for_it_though_another_fits_better():
  boxes = jnp.array([[0.0, 0, 1, 1], [0.0, 0, 0.1, 0.1]])
  anchors = jnp.array([[0.0, 0, 1, 1], [0.0, 0, 0.8, 0.8], [0.9, 0.9, 1, 1]])
  positive, _, stands_for = jax.jit(rpn.match)(anchors, boxes)
  np.testing.assert_array_equal(positive, [True, True, False])
  np.testing.assert_array_equal(stands_for[:2], [0, 1])  # the second's IoU is 0.64 with the first, 0.016 with its own


@pytest.mark.parametrize(("positives", "count", "wanted"), [(40, 20, (10, 10)), (3, 20, (3, 17)), (0, 20, (0, 20))])
def test_sampling_takes_at_most_half_positive_ones_and_each_as_often(positives, count, wanted):
  positive = jnp.arange(100) < positives
  negative = jnp.arange(100) >= 50
  draw = jax.jit(jax.vmap(functools.partial(rpn.sample, count=count), in_axes=(0, None, None)))
  taken, left = draw(jax.random.uniform(jax.random.key(0), (2_000, 100)), positive, negative)
  np.testing.assert_array_equal(taken.sum(axis=1), wanted[0])
  np.testing.assert_array_equal(left.sum(axis=1), wanted[1])
  assert not (taken & ~positive).any()
  assert not (left & ~negative).any()
  for drawn, eligible, share in ((taken, positive, wanted[0] / max(positives, 1)), (left, negative, wanted[1] / 50)):
    np.testing.assert_allclose(np.asarray(drawn.mean(axis=0))[np.asarray(eligible)], share, atol=0.06)


def test_fewer_negatives_than_wanted_are_all_taken():
  positive = jnp.arange(10) < 8
  draw = jax.jit(functools.partial(rpn.sample, count=256))
  taken, left = draw(jax.random.uniform(jax.random.key(0), 10), positive, ~positive)
  assert taken.sum() == 8
  assert left.sum() == 2


def plain_suppression(boxes, confidence, count, overlap):
  """The oracle: the textbook's loop."""
  order, kept = np.argsort(-confidence, kind="stable"), []
  for index in order:
    if len(kept) < count and all(boxes_lib.box_iou(boxes[index][None], boxes[k][None])[0, 0] <= overlap for k in kept):
      kept.append(index)
  return kept


@pytest.mark.parametrize("overlap", [0.7, 0.3])
def test_suppression_equals_a_plain_loop(overlap):
  suppress = jax.jit(functools.partial(boxes_lib.suppress, count=12, overlap=overlap))
  for seed in range(20):
    rng = np.random.default_rng(seed)
    boxes, confidence = random_boxes(rng, 200), rng.normal(size=200).astype(np.float32)
    boxes[100:] = boxes[:100] + rng.normal(0, 0.03, (100, 4))  # many that overlap
    kept = plain_suppression(boxes, confidence, 12, overlap)
    found, sure = suppress(boxes, confidence)
    np.testing.assert_array_equal(found, boxes[kept])
    np.testing.assert_array_equal(sure, confidence[kept])


@pytest.mark.oracle
def test_suppression_equals_opencv_s():
  cv2 = pytest.importorskip("cv2")
  rng = np.random.default_rng(1)
  boxes, confidence = random_boxes(rng, 200), rng.random(200).astype(np.float32)
  wide = np.concatenate([boxes[:, 1::-1], boxes[:, :1:-1] - boxes[:, 1::-1]], axis=1)  # left, top, width, height
  kept = cv2.dnn.NMSBoxes((1_000 * wide.astype(float)).tolist(), confidence.tolist(), 0.0, 0.5)[:12]
  found, _ = boxes_lib.suppress(boxes, confidence, count=12, overlap=0.5)
  np.testing.assert_array_equal(found, boxes[np.asarray(kept).ravel()])


def test_where_too_few_regions_are_left_the_whole_image_stands():
  boxes = jnp.array([[0.0, 0, 0.5, 0.5], [0.0, 0, 0.5, 0.49], [0.6, 0.6, 1, 1], [0.2, 0.2, 0.3, 0.3]])
  confidence = jnp.array([1.0, 2, 0.5, -jnp.inf])
  found, sure = boxes_lib.suppress(boxes, confidence, count=4, overlap=0.7)
  np.testing.assert_allclose(found, [boxes[1], boxes[2], WHOLE, WHOLE])
  np.testing.assert_array_equal(sure, [2, 0.5, -np.inf, -np.inf])


def test_proposals_lie_within_the_image():
  anchors = rpn.anchor_boxes((4, 4), ((8, 8),), 4)
  offsets = jax.random.normal(jax.random.key(0), (16, 4)) * 3
  propose = jax.jit(functools.partial(rpn.propose, count=16, overlap=0.7))
  boxes, _ = propose(jnp.zeros((16, 2)), offsets, anchors)
  assert boxes.min() >= 0
  assert boxes.max() <= 1
  assert (boxes_lib.box_area(boxes) > 0).all()


def test_the_layer_s_loss_by_hand():
  boxes = jnp.array([[0.0, 0, 0.5, 0.5], [0, 0, 0, 0]])
  anchors = jnp.array([[0.0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.0, 0, 0.5, 0.25]])  # positive, negative, neither
  scores = jnp.array([[0.0, np.log(3)], [0, 0], [100, -100]])
  offsets = jnp.array([[0.5, 0, 0, 3.0], [9, 9, 9, 9], [9, 9, 9, 9]])

  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def loss(scores, offsets, boxes):
    terms = rpn.layer_loss(scores, offsets, anchors, boxes, jnp.array([0.1, 0.2, 0.3]))
    return sum(terms), terms

  loss = jax.jit(loss)
  (_, (confidence, distance)), (to_scores, to_offsets) = loss(scores, offsets, boxes)
  np.testing.assert_allclose(confidence, (-np.log(0.75) - np.log(0.5)) / 2, rtol=1e-6)
  np.testing.assert_allclose(distance, 0.5 * 0.25 + (3 - 0.5), rtol=1e-6)
  assert np.isfinite(to_scores).all()
  np.testing.assert_allclose(to_offsets, [[0.5, 0, 0, 1], [0] * 4, [0] * 4], atol=1e-6)
  # An image without objects teaches that nothing is there.
  (_, (confidence, distance)), _ = loss(scores, offsets, jnp.zeros((2, 4)))
  np.testing.assert_allclose(confidence, -np.log([0.25, 0.5, 1]).sum() / 3, rtol=1e-5)
  assert distance == 0
  # Of two positives, the second with the offsets that it should have, the mean.
  anchors = jnp.array([[0.0, 0, 0.5, 0.5], [0.0, 0, 0.5, 0.4], [0.5, 0.5, 1, 1]])
  offsets = jnp.stack([offsets[0], rpn.find_offsets(anchors[1], boxes[0]), offsets[2]])
  _, distance = rpn.layer_loss(scores, offsets, anchors, boxes, jnp.array([0.1, 0.2, 0.3]))
  np.testing.assert_allclose(distance, (0.5 * 0.25 + (3 - 0.5)) / 2, rtol=1e-6)


def test_a_sequence_of_labels_by_hand():
  labels = jnp.array([[0.0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
  find = jax.jit(rlsd.label_sequence, static_argnums=(1, 2))
  sequence, counts = find(labels, 4)
  np.testing.assert_array_equal(sequence, [[1, 3, 4, 4], [4, 4, 4, 4], [0, 1, 2, 3]])  # END is 4
  np.testing.assert_array_equal(counts, [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
  np.testing.assert_array_equal(find(labels, 6)[0][2], [0, 1, 2, 3, 4, 4])
  np.testing.assert_array_equal(find(labels, 3, (3, 2, 1, 0))[0], [[3, 1, 4], [4, 4, 4], [3, 2, 1]])


def test_the_sequence_s_loss_by_hand():
  # Two regions, one image, labels a and b and END, two steps: a, then END.
  logits = jnp.log(jnp.array([[[[4.0, 1, 1]], [[1, 2, 2]]], [[[1, 1, 1]], [[1, 1, 2]]]]))  # [T, K, B, L + 1]
  sequence, counts = jnp.array([[0, 2]]), jnp.ones((1, 2), bool)
  sequence_loss = jax.jit(rlsd.sequence_loss)
  loss = functools.partial(sequence_loss, sequence=sequence, counts=counts, mask=jnp.ones(1))
  neither = jnp.zeros((1, 2), bool)
  np.testing.assert_allclose(loss(logits, ignore=neither), -np.log(4 / 8) - np.log(2 / 4), rtol=1e-6)
  ignored = loss(logits, ignore=jnp.array([[False, True]]))
  np.testing.assert_allclose(ignored, -np.log(4 / 6) - np.log(2 / 3), rtol=1e-6)
  # What comes after END does not count.
  first = loss(logits, counts=jnp.array([[True, False]]), ignore=neither)
  np.testing.assert_allclose(first, -np.log(4 / 8), rtol=1e-6)
  padded = jax.tree.map(lambda x: jnp.concatenate([x, x]), (sequence, counts, neither))
  more = sequence_loss(
    jnp.concatenate([logits, 9 * logits], axis=2), *padded[:2], ignore=padded[2], mask=jnp.array([1.0, 0])
  )
  np.testing.assert_allclose(more, loss(logits, ignore=neither), rtol=1e-6)


def test_the_highest_log_odds_of_the_regions_are_those_of_the_pooled_softmax():
  logits = 5 * jax.random.normal(jax.random.key(0), (3, 2, 6))
  found = rlsd.log_odds(logits)
  pooled = jax.nn.softmax(logits.max(axis=0))[:, :-1]
  np.testing.assert_allclose(jax.nn.sigmoid(found.max(axis=0)), pooled, rtol=1e-5)
  np.testing.assert_array_equal(found.argmax(axis=0), logits[..., :-1].argmax(axis=0))
  # By hand: labels of weight 3 and 1 in one region, END of weight 2; the other region says nothing.
  one = rlsd.log_odds(jnp.log(jnp.array([[[3.0, 1, 2]], [[1, 1e-9, 1]]])))
  np.testing.assert_allclose(one, np.log([[[3 / 3, 1 / 5]], [[1 / 3, 1e-9 / 5]]]), rtol=1e-5, atol=1e-6)


def small_reader(num_classes=4, codes=(3, 2, 6)):
  key = jax.random.key(3)
  params = rlsd.init(key, num_classes=num_classes, x_width=6, channels=2, region_size=(2, 2), lstm_width=5, z_width=7)
  params = jax.tree.map(lambda x: 3 * x, params)  # so that it has opinions
  return params, jax.random.normal(key, codes)


def plain_reading(params, codes, steps):
  """The oracle: one image after the other, in numpy, by the words of the module's docstring."""
  regions, batch, _ = codes.shape
  classes = len(params["labels"])
  scores, read = np.full((regions, batch, classes), -np.inf), []
  sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
  for b in range(batch):
    state = [(np.zeros(5), np.zeros(5)) for _ in range(regions)]
    inputs, said = list(codes[:, b]), []
    for _ in range(steps):
      logits = np.zeros((regions, classes + 1))
      for k in range(regions):
        c, h = state[k]
        i, g, o, m = np.split(inputs[k] @ params["lstm"]["w_x"] + h @ params["lstm"]["w_h"] + params["lstm"]["b"], 4)
        c = sigmoid(g) * c + sigmoid(i) * np.tanh(m)
        state[k] = c, sigmoid(o) * c
        z = np.maximum(state[k][1] @ params["hz"]["kernel"] + params["hz"]["bias"], 0)
        logits[k] = z @ params["zs"]["kernel"] + params["zs"]["bias"]
      pooled = logits.max(axis=0)
      for label in range(classes):
        others = np.log(np.exp(np.delete(pooled, label)).sum())
        scores[:, b, label] = np.maximum(scores[:, b, label], logits[:, label] - others)
      label = max((each for each in range(classes + 1) if each not in said), key=lambda each: pooled[each])
      said.append(label)
      if label == classes:
        break
      inputs = [params["labels"][label]] * regions
    read.append(said)
  return scores, read


def test_reading_equals_a_plain_loop_and_ends_at_end():
  lengths = set()
  read = jax.jit(functools.partial(rlsd.read, steps=5))
  odds_given = jax.jit(lambda *given: jax.vmap(rlsd.log_odds)(rlsd.read_given(*given)))
  for seed in range(6):
    params, codes = small_reader()
    codes = codes + jax.random.normal(jax.random.key(seed), codes.shape)
    wanted, said = plain_reading(jax.tree.map(np.asarray, params), np.asarray(codes), 5)
    np.testing.assert_allclose(read(params, codes), wanted, atol=1e-4)
    lengths |= set(map(len, said))
    # What was read, given, leads to the same logits: their log-odds are the scores.
    sequence = jnp.array([row + [4] * (5 - len(row)) for row in said])
    odds = np.asarray(odds_given(params, codes, sequence))
    going = np.arange(5) < np.array([len(row) for row in said])[:, None]
    again = np.where(going.T[:, None, :, None], odds, -np.inf).max(axis=0)
    np.testing.assert_allclose(again, wanted, atol=1e-4)
  assert len(lengths) > 2  # or END would never have been tried


def test_the_order_of_regions_changes_nothing():
  params, codes = small_reader()
  scores, turned = (rlsd.read(params, each, steps=4) for each in (codes, codes[::-1]))
  np.testing.assert_allclose(turned[::-1], scores, atol=1e-6)


def test_a_reader_learns_which_region_holds_what():
  """Each region's code names one of two labels or nothing; images hold one, both or neither, and none is told where."""
  rng = np.random.default_rng(0)
  held = rng.integers(0, 3, (3, 512))  # of 3 regions: label 0, label 1, or nothing
  codes = jnp.asarray(np.eye(3, 6)[held] + rng.normal(0, 0.1, (3, 512, 6)), jnp.float32)
  labels = jnp.asarray(np.stack([(held == label).any(axis=0) for label in range(2)], axis=1), jnp.float32)
  params, _ = small_reader(2)
  loss_of = rlsd.make_loss(steps=3)
  optimizer = optax.adam(0.02)

  @jax.jit
  def update(params, state):
    def loss(params):
      found = types.SimpleNamespace(x=codes, memory=params)
      return loss_of(found, labels, jnp.zeros_like(labels, bool), jnp.ones(512))[0]

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, value

  state = optimizer.init(params)
  for _ in range(150):
    params, state, value = update(params, state)
  assert value < 0.1
  scores = rlsd.read(params, codes, steps=3)
  np.testing.assert_array_equal(scores.max(axis=0) > 0, labels == 1)
  for label in range(2):
    present = np.asarray(labels[:, label]) == 1
    winner = np.asarray(scores[..., label].argmax(axis=0))
    assert (held[winner, np.arange(512)] == label)[present].mean() > 0.98


def small_config(data_root, **changes):
  config = digits.get_config("tiny:rlsd")
  config.data.root = str(data_root)
  config.model.vgg.blocks = ((4,), (6,), (6,))
  config.model.x_width = config.model.lstm_width = config.model.z_width = 16
  config.model.num_regions = 3
  config.model.rpn.width = 8
  config.batch_size, config.epoch_size, config.rpn.epoch_size = 16, 32, 32
  config.rpn.epochs, config.stage_one.epochs, config.stage_two.epochs = 2, 0, 2
  config.rpn.box_weight = 0.5
  config.evaluation.batch_size = 20
  config.evaluation.svm_solver = ""
  config.evaluation.pictures = 0
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
  folder = tmp_path_factory.mktemp("rlsd") / "whole"
  pipeline.train_and_evaluate(small_config(data_root), folder)
  return folder


def lines(folder):
  found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def best_of(config, folder):
  """Stage two's best parameters and the region proposal network's own."""
  _, params, _ = checkpoints.load_best(config, folder, 10, mesh_lib.make_mesh())
  saved = checkpoints.StageCheckpoints(folder / "checkpoints" / "rpn")
  like = checkpoints.abstract(params["rpn"], mesh_lib.replicated(mesh_lib.make_mesh()))
  rpn, _ = saved.restore_best(like)
  saved.close()
  return params, rpn


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, other))


@pytest.mark.slow
def test_both_stages_take_the_same_rpn(data_root, tmp_path):
  changes = {"rpn.epochs": 1, "stage_one.head": "rlsd", "stage_one.epochs": 1, "stage_two.epochs": 1}
  config = small_config(data_root, **changes)
  with pytest.raises(UserError, match=r"'rlsd' needs more than the map .*: set stage_two\.auxiliary_weight to 0"):
    loop.train(config, tmp_path)
  config.stage_two.auxiliary_weight = 0.0
  loop.train(config, tmp_path)
  params, rpn = best_of(config, tmp_path)
  assert_same(params["rpn"], rpn)


def test_a_run_trains_its_rpn_first_and_leaves_it_as_it_is(finished, data_root):
  config = small_config(data_root)
  assert [(line["stage"], line["epoch"]) for line in lines(finished)] == [
    *(("rpn", epoch) for epoch in (1, 2)),
    *(("stage_two", epoch) for epoch in (1, 2)),
  ]
  for line in lines(finished)[:2]:
    assert line["loss"] == pytest.approx(line["confidence"] + 0.5 * line["box"], rel=1e-5)
    assert line["validation_loss"] == pytest.approx(1 - line["validation_recall"])
    assert min(line["box"], line["validation_recall"]) > 0
  assert {"sequence", "auxiliary", "validation_mAP"} <= lines(finished)[-1].keys()
  results = json.loads((finished / "results.json").read_text())
  assert results["head"] == "rlsd"
  assert {"coverage", "auxiliary_mAP", "thresholded"} <= results.keys()
  params, rpn = best_of(config, finished)
  assert_same(params["rpn"], rpn)
  assert (np.asarray(rpn["offsets"]["kernel"]) != 0).any()  # which it began with
  stage = stages.build(config, "stage_two", num_classes=10, num_records=160)
  state = jax.eval_shape(
    functools.partial(step_lib.init_state, stage.model, stage.optimizer, size=64), jax.random.key(0)
  )
  kept = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
  assert any("'head'" in name for name in kept)
  assert not any("'rpn'" in name for name in kept)


@pytest.mark.slow
def test_a_run_that_was_stopped_in_its_rpn_s_training_ends_where_an_uninterrupted_one_does(
  finished, data_root, tmp_path, monkeypatch
):
  config, folder, validate = small_config(data_root), tmp_path / "stopped", loop._Trainer.validate

  def interrupt(trainer, stage, forward, params, maps):
    interrupt.epochs += 1
    if interrupt.epochs == 2:
      raise KeyboardInterrupt
    return validate(trainer, stage, forward, params, maps)

  interrupt.epochs = 0
  monkeypatch.setattr(loop._Trainer, "validate", interrupt)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, folder)
  monkeypatch.setattr(loop._Trainer, "validate", validate)
  assert [line["stage"] for line in lines(folder)] == ["rpn"]
  loop.train(config, folder)
  assert lines(folder) == lines(finished)
  assert_same(best_of(config, folder), best_of(config, finished))


def test_predictions_and_an_exported_model_find_the_same_regions(finished, data_root, tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)
  (found,) = predictor.load(finished, threshold=0.0).predict([image])
  assert len(found.regions) == 3
  assert len(found.labels) == 10
  assert all(
    0 <= left < right <= 60 and 0 <= top < bottom <= 90 for left, top, right, bottom in (r.box for r in found.regions)
  )
  exported.export(finished, tmp_path / "out")
  (again,) = predictor.load(tmp_path / "out", threshold=0.0).predict([image])
  assert again.labels == found.labels
  assert again.regions == found.regions


def test_ten_views_have_regions_of_their_own(finished):
  results = evaluate.evaluate(finished, {"views": "ten"})
  assert (results["views"], results["mirror"]) == ("ten", "image")
  assert 0 <= results["mAP"] <= 1


def test_two_devices_train_an_rpn_as_one_does(data_root):
  config = small_config(data_root, **{"model.vgg.blocks": ((4,), (6,))})
  stage = stages.build_rpn(rpn_training.config_of(config), 160)
  optimizer = optax.sgd(0.1)
  state = jax.jit(functools.partial(step_lib.init_state, stage.model, optimizer, size=24))(jax.random.key(0))
  rng = np.random.default_rng(0)
  boxes = random_boxes(rng, 8 * 4).reshape(8, 4, 4)
  boxes[:, 3] = 0
  batch = {
    "image": rng.integers(0, 256, (8, 24, 24, 3), np.uint8),
    "labels": np.ones((8, 26), np.float32),
    "ignore": np.zeros((8, 26), bool),
    "mask": (np.arange(8) < 7).astype(np.float32),
    "proposals": boxes,
  }
  train_step = jax.jit(step_lib.make_train_step(stage.model, optimizer, stage.objective))
  one, metrics_of_one = train_step(state, batch)
  two, metrics_of_two = train_step(state, jax.device_put(batch, mesh_lib.by_example(mesh_lib.make_mesh())))
  for a, b in zip(jax.tree.leaves((one, metrics_of_one)), jax.tree.leaves((two, metrics_of_two)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert float(metrics_of_one["box"]) > 0


def test_recall_counts_what_the_centre_view_shows(data_root):
  own = rpn_training.config_of(small_config(data_root))
  split = open_split(own.data, own.data.validation)
  shown = iter(np.stack([(split[i].proposals * 72 - 4) / 64 for i in range(len(split))]).reshape(2, 20, 8, 4))
  first = []

  def exact(params, images):
    del params, images
    first.append(next(shown))
    return jnp.asarray(first[-1])

  sharding = mesh_lib.by_example(mesh_lib.make_mesh())
  found = rpn_training.recall(rpn_training.Forward(exact, sharding), None, split, data=own.data, batch_size=20)
  assert found == 1
  whole = jnp.broadcast_to(jnp.asarray(WHOLE, jnp.float32), (20, 1, 4))
  nothing = rpn_training.Forward(lambda params, images: whole, sharding)
  assert rpn_training.recall(nothing, None, split, data=own.data, batch_size=20) == 0


def test_full_size_models_have_their_shapes():
  for config, anchor in ((voc.get_config("rlsd"), 32), (coco.get_config("640:rlsd"), 40)):
    assert config.model.rpn.anchor_sizes[0] == (anchor, 2 * anchor)  # 45 x 90 of 720
    assert len(config.model.rpn.anchor_sizes) == 12
    assert config.rpn.data == {"voc/2007": "coco/2014", "coco/2014": "voc/2007"}[config.data.name]
    stage = stages.build(config, "stage_two", num_classes=20, num_records=5011)
    side = config.data.crop_size
    state = jax.eval_shape(
      functools.partial(step_lib.init_state, stage.model, stage.optimizer, size=side), jax.random.key(0)
    )
    assert state.params["rpn"]["filters"]["kernel"].shape == (3, 3, 512, 256)
    assert state.params["rpn"]["offsets"]["kernel"].shape == (1, 1, 256, 48)
    assert state.params["rpn"]["scores"]["kernel"].shape == (1, 1, 256, 24)
    batch = {
      "image": jax.ShapeDtypeStruct((16, side, side, 3), jnp.uint8),
      "labels": jax.ShapeDtypeStruct((16, 20), jnp.float32),
      "ignore": jax.ShapeDtypeStruct((16, 20), jnp.bool_),
      "mask": jax.ShapeDtypeStruct((16,), jnp.float32),
    }
    after, terms = jax.eval_shape(step_lib.make_train_step(stage.model, stage.optimizer, stage.objective), state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert "sequence" in terms
    before = stages.build_rpn(rpn_training.config_of(config), 1_000)
    shapes = jax.eval_shape(functools.partial(step_lib.init_params, before.model, size=side), jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, state.params["rpn"])
  assert rpn_training.config_of(voc.get_config("rlsd_ft_rpn")).data.name == "voc/2007"


def test_an_impossible_rpn_is_refused(data_root):
  config = custom.get_config("rlsd")
  config.rpn.data = ""
  with pytest.raises(UserError, match=r"rpn\.data must name a data set with boxes"):
    rpn_training.config_of(config)
  with pytest.raises(UserError, match="rlsd learns from another data set's boxes"):
    rpn_training.config_of(small_config(data_root, **{"rpn.data": ""}))
  config = small_config(data_root, **{"model.head": "rlsd_ft_rpn"})
  with pytest.raises(UserError, match="must be empty, got 'digits/source_tiny'"):
    rpn_training.config_of(config)
  with pytest.raises(UserError, match="'rlsd_ft_rpn' is none of"):
    custom.get_config("rlsd_ft_rpn")
  config = small_config(data_root)
  config.model.rpn.anchor_sizes = ()
  with pytest.raises(UserError, match=r"model\.rpn\.anchor_sizes must be pairs"):
    rpn_lib.build(config.model)
  for field, value, message in (
    ("steps", 0, "must be at least 1, got 0"),
    ("order", (0, 0), "each of the 10 classes'"),
  ):
    config = small_config(data_root, **{f"model.rlsd.{field}": value})
    with pytest.raises(UserError, match=rf"model\.rlsd\.{field} .*{message}"):
      recognizer.build(config.model, 10, head="rlsd")
  with pytest.raises(UserError, match=r"rpn\.epochs must be at least 1, got 0"):
    stages.build_rpn(small_config(data_root, **{"rpn.epochs": 0}), 160)
  with pytest.raises(UserError, match=r"rpn\.samples must be at least 2, got 1"):
    stages.build_rpn(small_config(data_root, **{"rpn.samples": 1}), 160)
  with pytest.raises(UserError, match=r"the first not above the second, got 0\.8 and 0\.7"):
    stages.build_rpn(small_config(data_root, **{"rpn.negative": 0.8}), 160)
  config = small_config(data_root, **{"model.rpn.overlap": 1.5})
  with pytest.raises(UserError, match=r"model\.rpn\.overlap must be an IoU in \[0, 1\], got 1\.5"):
    rpn_lib.build(config.model)


@pytest.mark.slow
@pytest.mark.parametrize("head", common.RLSD)
def test_in_two_phases_the_rpn_is_that_of_the_first_or_learns_as_long(head, data_root, tmp_path):
  source = "digits/source_tiny" if head == "rlsd" else ""
  config = small_config(data_root, **{"model.head": head, "rpn.data": source, "stage_two.epochs": 1})
  config.data.final_train = "train+validation"
  pipeline.train_and_evaluate(config, tmp_path)
  chosen = checkpoints.best_epochs(tmp_path / "choose")
  assert chosen.keys() == {"rpn", "stage_two"}
  raw = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path, tmp_path / "choose")]
  log = [[line for line in map(json.loads, each) if line["stage"] == "rpn"] for each in raw]
  if head == "rlsd":
    assert log[0] == log[1]  # with its seconds: it was not trained again
  else:
    assert [line["epoch"] for line in log[0]] == list(range(1, chosen["rpn"] + 1))
    assert "validation_recall" in log[1][0]
    assert "validation_recall" not in log[0][0]


@pytest.mark.parametrize("head", common.RLSD)
def test_its_fields_count_for_its_own_runs_alone(head):
  def determining(head, **changes):
    config = digits.get_config(f"tiny:{head}")
    config.update_from_flattened_dict(changes)
    return workdir.determining(workdir.flatten(json.loads(config.to_json())), config)

  for field, value in (("model.rlsd.steps", 9), ("model.rpn.width", 3), ("rpn.samples", 7)):
    assert determining(head, **{field: value}) != determining(head)
    assert determining("saliency", **{field: value}) == determining("saliency")
