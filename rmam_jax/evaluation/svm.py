"""One-vs-rest linear SVMs on region features (Sec. 5.1): LIBLINEAR's problem, solved by it or for all classes at once.

For each class, with targets t_i = +1 or -1 and the bias b regularised as `LinearSVC(intercept_scaling=1)` has it:

    min over (w, b) of  |w|^2 / 2 + b^2 / 2 + C sum_i max(0, 1 - t_i (w x_i + b))^2

Letters: N images, F features, L classes; W [F + 1, L] holds the weights with the biases in its last row.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmam_jax.runtime import files
from rmam_jax.runtime import mesh as mesh_lib
from rmam_jax.runtime.errors import UserError, check_name

FILE = "svm.npz"
SOLVERS = ("newton", "liblinear")
TOLERANCE = 1e-5  # share of the largest weight that the last step may still move one by; about a tenth of it remains
NARROW = 1e-3  # the share from which on float32 is no longer enough
MOST_STEPS = 100  # of Newton; some ten are usual
MOST_PRODUCTS = 400  # of the curvature with a vector, in each of them
FORCING = 0.1  # how far each step's linear system is solved
LINE_SEARCH = 10  # steps of one-dimensional Newton
BLOCK = 1_024  # rows that are multiplied at a time
SAMPLE = 10_000  # images, about, that tell how they spread
RANK = 128  # directions that the preconditioner knows


class Machines(NamedTuple):
  """L linear machines. One that could not be fitted is all zeros: its average precision is that of chance."""

  weights: np.ndarray  # [L, F]
  biases: np.ndarray  # [L]
  class_names: tuple[str, ...] = ()

  def margins(self, features: np.ndarray) -> np.ndarray:
    """Features as in `fit` -> [N, L], above 0 where the label is predicted."""
    product = features @ self.weights.T if features.ndim == 2 else np.einsum("nlf,lf->nl", features, self.weights)
    return product + self.biases

  @property
  def unfitted(self) -> np.ndarray:
    """The classes without a machine, int."""
    return np.flatnonzero(~self.weights.any(axis=1) & (self.biases == 0))


def normalize(features: np.ndarray) -> np.ndarray:
  """Features [..., F] scaled to Euclidean length 1; zeros stay zeros."""
  return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), np.finfo(features.dtype).tiny)


def check_cs(cs: Sequence[float]) -> None:
  """Refuses values of C that are none, or not positive."""
  if not cs or min(cs) <= 0:
    raise UserError(f"evaluation.svm_c must hold positive values, got {tuple(cs)}")


def fit(
  features: np.ndarray,
  labels: np.ndarray,
  cs: Sequence[float],
  *,
  ignore: np.ndarray | None = None,
  solver: str = "newton",
  class_names: Sequence[str] = (),
  seed: int = 0,
) -> Iterator[Machines]:
  """Fits machines, float64, to features and labels [N, L] of 0 and 1 for one value of C after the other.

  Features are [N, F], or [N, L, F] where each class has its own. Labels marked in `ignore`, bool [N, L], are left out of
  their class. The solver "newton" fits all classes at once in JAX, or, where each has its own features, one after the
  other; "liblinear" is scikit-learn's `LinearSVC` at its own tolerance, and `seed` is that of its shuffling. A class of
  only positives or only negatives cannot be fitted, see `Machines`. Raises a UserError for features that are not finite,
  for a C that is not positive, and where the solver does not converge.
  """
  check_name("evaluation.svm_solver", solver, SOLVERS)
  check_cs(cs)
  features, labels = np.asarray(features), np.asarray(labels) > 0
  if not np.isfinite(features).all():
    raise UserError(f"the features of image {np.argwhere(~np.isfinite(features))[0][0]} are not finite")
  kept = np.ones(labels.shape, bool) if ignore is None else ~np.asarray(ignore, bool)
  kept &= (labels & kept).any(axis=0) & (~labels & kept).any(axis=0)  # a class of one kind is left out whole
  solve = _newton if solver == "newton" else functools.partial(_liblinear, seed=seed)
  if features.ndim == 3:
    solve = functools.partial(_class_by_class, solve)
  for weights in solve(features, labels, kept, cs):
    yield Machines(weights[:-1].T.copy(), weights[-1].copy(), tuple(class_names))


def _class_by_class(solve, features, labels, kept, cs) -> Iterator[np.ndarray]:
  """Each class by its own features [N, L, F], of which a solver sees one class's at a time."""
  solved = [
    list(solve(np.ascontiguousarray(features[:, label]), labels[:, [label]], kept[:, [label]], cs))
    for label in range(labels.shape[1])
  ]
  for weights in zip(*solved, strict=True):
    yield np.concatenate(weights, axis=1)


def _liblinear(features, labels, kept, cs, *, seed) -> Iterator[np.ndarray]:
  from sklearn.svm import LinearSVC

  for c in cs:
    weights = np.zeros((features.shape[1] + 1, labels.shape[1]))
    for label in np.flatnonzero(kept.any(axis=0)):
      rows = kept[:, label]
      machine = LinearSVC(C=c, dual=rows.sum() < features.shape[1], random_state=seed)
      machine.fit(features[rows], labels[rows, label])
      weights[:, label] = np.append(machine.coef_, machine.intercept_)
    yield weights


# Newton's method with conjugate gradients (Lin, Weng, Keerthi 2008), for all classes at once: each product with the
# features serves them all. Steps are taken in the features' own type until they become small, and then with objective
# and gradient in float64, which decide the solution. The curvature stays in the features' type: it only decides how
# fast the solution is reached.

_matmul = functools.partial(jnp.matmul, precision="highest")


def _over_blocks(x_NF, dtype, body, initial):
  """Folds body(carry, block, start, first new row) over blocks of rows; the last one overlaps the one before."""
  length = min(len(x_NF), BLOCK)

  def step(i, carry):
    start = jnp.minimum(i * length, len(x_NF) - length)
    return body(carry, jax.lax.dynamic_slice_in_dim(x_NF, start, length).astype(dtype), start, i * length)

  return jax.lax.fori_loop(0, -(-len(x_NF) // length), step, initial)


def _times(x_NF, w):
  """[x, 1] w in w's type: [F + 1, L] -> [N, L]; as (w^T x^T)^T, on a CPU twice as fast as x w."""

  def product(x):
    return _matmul(w[:-1].T, x.T).T + w[-1]

  def body(out, block, start, _):
    return jax.lax.dynamic_update_slice_in_dim(out, product(block), start, 0)

  if x_NF.dtype == w.dtype:
    return product(x_NF)
  return _over_blocks(x_NF, w.dtype, body, jnp.zeros((len(x_NF), w.shape[1]), w.dtype))


def _transposed_times(x_NF, r, power=1):
  """[x, 1]^T r in r's type, x raised to a power: [N, L] -> [F + 1, L]; as (r^T x)^T, on a CPU ten times as fast."""

  def body(total, block, start, new):
    rows = jax.lax.dynamic_slice_in_dim(r, start, len(block))
    fresh = start + jnp.arange(len(block)) >= new  # the last block's first rows may have been counted
    return total + _matmul(jnp.where(fresh[:, None], rows, 0).T, block**power)

  product = _over_blocks(x_NF, r.dtype, body, jnp.zeros((r.shape[1], x_NF.shape[1]), r.dtype))
  return jnp.concatenate([product.T, r.sum(0, keepdims=True)])


@jax.jit
def _spread(x_NF):
  """The columns' deviation [F], the R orthonormal directions [F, R] of most spread, and the images along them [N, R].

  They are those of a sample of the images, its columns scaled to mean 0 and deviation 1: a subspace iteration.
  """
  sample = x_NF[:: -(-len(x_NF) // SAMPLE)]
  mean, deviation = sample.mean(0), sample.std(0)
  inverse = jnp.where(deviation > 0, 1 / jnp.where(deviation > 0, deviation, 1), 0)
  scaled = (sample - mean) * inverse
  rank = min(RANK, *scaled.shape)
  directions = jax.random.normal(jax.random.key(0), (x_NF.shape[1], rank), x_NF.dtype)
  for _ in range(3):
    directions, _ = jnp.linalg.qr(_matmul(_matmul(scaled, directions).T, scaled).T)
  weights = directions * inverse[:, None]
  bias = -_matmul(mean, weights)
  return deviation, directions, _times(x_NF, jnp.concatenate([weights, bias[None]]))


def _preconditioner(x_NF, spread, active):
  """Roughly the inverse of the curvature: r [F + 1, L] -> [F + 1, L].

  Features that are not negative have a mean that the bias can hardly be told from: for each class the mean over its
  active images is moved into the bias first, b' = b + mean w, in which the two no longer meet. Of the rest, the
  diagonal is inverted, and on the scale that this sets the curvature along the directions in which images spread most,
  which are the same for all classes.
  """
  deviation, directions, images = spread
  sums, squares = _transposed_times(x_NF, active), _transposed_times(x_NF, active, power=2)[:-1]
  total = sums[-1]
  mean = sums[:-1] / jnp.maximum(total, jnp.finfo(sums.dtype).tiny)
  scale = jax.lax.rsqrt(1 + mean**2 + jnp.maximum(squares - total * mean**2, 0))
  first, second = _matmul(active.T, images).T, _matmul(active.T, images**2).T
  variance = jnp.maximum(second - first**2 / jnp.maximum(total, jnp.finfo(sums.dtype).tiny), 0)
  shares = directions.T**2
  along = _matmul(shares, scale**2) + variance * _matmul(shares, deviation[:, None] * scale) ** 2
  gain = 1 / jnp.maximum(along, jnp.finfo(sums.dtype).eps) - 1

  def apply(r):
    w = (r[:-1] - mean * r[-1]) * scale
    w += _matmul(directions, gain * _matmul(directions.T, w))
    w *= scale
    b = r[-1] / (1 + total) - (mean * w).sum(0)
    return jnp.concatenate([w, b[None]])

  return apply


def _conjugate_gradients(curvature, precondition, g, tolerance):
  """Solves H d = -g for each column, down to a residual of `tolerance` in the norm of the preconditioner."""

  def body(state):
    d, r, p, rz, i = state
    hp = curvature(p)
    going = rz > 0
    alpha = jnp.where(going, rz / jnp.maximum((p * hp).sum(0), jnp.finfo(g.dtype).tiny), 0)
    d, r = d + alpha * p, r - alpha * hp
    z = precondition(r)
    new = (r * z).sum(0)
    p = z + jnp.where(going, new / jnp.where(going, rz, 1), 0) * p
    return d, r, p, jnp.where(going & (new > tolerance**2 * first), new, 0), i + 1

  z = precondition(-g)
  first = -(g * z).sum(0)
  state = (jnp.zeros_like(g), -g, z, first, 0)
  return jax.lax.while_loop(lambda s: (s[3] > 0).any() & (s[4] < MOST_PRODUCTS), body, state)[0]


@jax.jit
def _newton_step(x, spread, c, targets, kept, w):
  """One step for every class, in w's type: w, and each class's largest move and largest weight; x is never copied."""
  t, kept = targets.astype(w.dtype), kept.astype(w.dtype)
  xw = _times(x, w)
  slack = jnp.maximum(0, 1 - t * xw) * kept
  gradient = w - 2 * c * _transposed_times(x, t * slack)
  active = (2 * c * (slack > 0)).astype(x.dtype)

  def curvature(v):
    return v + _transposed_times(x, active * _times(x, v))

  scale = jnp.maximum(jnp.abs(gradient).max(0), jnp.finfo(w.dtype).tiny)  # keeps a small gradient in the narrow type
  precondition = _preconditioner(x, spread, active)
  d = _conjugate_gradients(curvature, precondition, (gradient / scale).astype(x.dtype), FORCING).astype(w.dtype) * scale
  step = _line_search(w, d, t, kept, c, xw, _times(x, d))
  w = w + step * d
  return w, jnp.abs(d).max(0), jnp.abs(w).max(0)


def _line_search(w, d, t, kept, c, xw, xd):
  """The step [L] along d that minimises each class's objective: Newton's method on its slope, which rises piecewise."""

  def slope(step):
    slack = jnp.maximum(0, 1 - t * (xw + step * xd)) * kept
    first = ((w + step * d) * d).sum(0) - 2 * c * (slack * t * xd).sum(0)
    return first, (d * d).sum(0) + 2 * c * ((slack > 0) * xd * xd).sum(0)

  def body(_, state):
    step, low, high = state
    first, second = slope(step)
    low, high = jnp.where(first < 0, step, low), jnp.where(first > 0, step, high)
    new = step - first / jnp.maximum(second, jnp.finfo(w.dtype).tiny)
    inside = (new > low) & (new < high)
    return jnp.where(first == 0, step, jnp.where(inside, new, (low + jnp.minimum(high, 4)) / 2)), low, high

  one = jnp.ones(w.shape[1], w.dtype)
  return jax.lax.fori_loop(0, LINE_SEARCH, body, (one, 0 * one, jnp.inf * one))[0]


def _bucket(count: int, classes: int, devices: int) -> int:
  """Columns for `count` classes: all, or a half, a quarter, ... of them, so that few sizes are compiled."""
  size = classes
  while size // 2 >= count and size // 2 >= devices:
    size //= 2
  return -(-size // devices) * devices


def _newton(features, labels, kept, cs) -> Iterator[np.ndarray]:
  mesh = mesh_lib.make_mesh(jax.local_devices())
  classes, by_class = labels.shape[1], mesh_lib.by_class(mesh)
  with jax.enable_x64(True):
    x = jax.device_put(features, mesh_lib.replicated(mesh))
    spread = _spread(x)
  targets, counts = np.where(labels, 1, -1).astype(np.int8), kept.astype(np.int8)
  w = np.zeros((features.shape[1] + 1, classes))

  def step(chosen, c, dtype) -> np.ndarray:
    """One step of the chosen classes; returns the share of its largest weight that each moved one by."""
    padding = [(0, 0), (0, _bucket(len(chosen), classes, mesh.size) - len(chosen))]  # with classes of no images
    with jax.enable_x64(True):
      arrays = [jax.device_put(np.pad(a[:, chosen], padding), by_class) for a in (targets, counts, w.astype(dtype))]
      moved = _newton_step(x, spread, dtype.type(c), *arrays)
    new, distance, largest = (np.asarray(array, np.float64)[..., : len(chosen)] for array in moved)
    w[:, chosen] = new
    return distance / np.maximum(largest, np.finfo(np.float32).tiny)

  for c in cs:
    # Classes that have converged wait. float32 is good enough until a step has become small; then float64.
    for dtype, enough in ((features.dtype, NARROW), (np.dtype(np.float64), TOLERANCE)):
      share = np.full(classes, np.inf)
      for _ in range(MOST_STEPS):
        chosen = np.flatnonzero(share > enough)
        if not len(chosen):
          break
        share[chosen] = step(chosen, c, dtype)
        if not np.isfinite(share).all():
          break
    if not (share <= TOLERANCE).all():
      raise UserError(
        f"the SVMs did not converge at C = {c}: the last step still moved a weight by {share.max():.0e} of the largest."
        " Scale the features' columns to similar sizes, lower C, or set evaluation.svm_solver='liblinear'."
      )
    yield w.copy()


def load(path: pathlib.Path) -> Machines:
  """What `save` wrote; raises UserError for a damaged file."""
  arrays = files.read_npz(path, "delete it and evaluate the workdir again")
  return Machines(arrays["weights"], arrays["biases"], tuple(arrays["class_names"].tolist()))


def save(path: pathlib.Path, machines: Machines) -> None:
  """Machines to an .npz, with the names of their classes."""
  files.write_npz(path, machines._asdict() | {"class_names": np.array(machines.class_names)})
