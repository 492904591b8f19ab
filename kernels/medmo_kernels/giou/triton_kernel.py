"""Triton kernels of giou: pair by pair, and all pairs of the problems of a batch.

Floors by bytes on an H200 (4.3 TB/s), none measured: aligned pairs move 32 B in and 4 (all terms: 12) out for 33 FLOPs,
so 1M pairs of fp32 boxes need at least 9 us (11). All pairs read each box from L1 many times and from memory once; 512
problems of 64 x 64 write 8 MB (25), at least 2 us (6). As compiled, a thread has one aligned pair, and loads and stores
an fp32 box by one instruction of 16 bytes.

IoU, GIoU and the corner distance are symmetric in their two boxes, ties included: one function gives the gradient of
either box, and one kernel, launched twice, that of either set. Each program owns its boxes and loops over the others:
no atomics. Products and sums are not fused and divisions of the scores are exact: equal boxes score exactly 1, and
exchanging two boxes changes no bit.
"""

# Triton's language is Python to read, not to check: constants come as plain numbers, tensors as anything.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl


@triton.jit
def load_boxes(ptr, rows, mask):
    """Load the corners of boxes as four fp32 tensors shaped like `rows`; zeros where masked."""
    corner = ptr + rows * 4
    x1 = tl.load(corner, mask=mask, other=0.0).to(tl.float32)
    y1 = tl.load(corner + 1, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(corner + 2, mask=mask, other=0.0).to(tl.float32)
    y2 = tl.load(corner + 3, mask=mask, other=0.0).to(tl.float32)
    return x1, y1, x2, y2


@triton.jit
def _load_rows(ptr, rows, mask):
    """Load what `load_boxes` does for rows of one axis, a box at a time: 16 bytes of fp32 in one instruction."""
    corners = tl.arange(0, 4)
    boxes = tl.load(ptr + rows[:, None] * 4 + corners[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
    xs, ys = tl.split(boxes.reshape(rows.shape[0], 2, 2))  # [N, 2] each: first corner, second corner
    x1, x2 = tl.split(xs)
    y1, y2 = tl.split(ys)
    return x1, y1, x2, y2


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def areas(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Return the areas of intersection, union and hull of broadcast pairs of boxes."""
    shared_width, shared_height = _smaller(ax2, bx2) - _larger(ax1, bx1), _smaller(ay2, by2) - _larger(ay1, by1)
    around_width, around_height = _larger(ax2, bx2) - _smaller(ax1, bx1), _larger(ay2, by2) - _smaller(ay1, by1)
    inter = _larger(shared_width, 0.0) * _larger(shared_height, 0.0)
    hull = _larger(around_width, 0.0) * _larger(around_height, 0.0)
    own = _larger(ax2 - ax1, 0.0) * _larger(ay2 - ay1, 0.0)
    other = _larger(bx2 - bx1, 0.0) * _larger(by2 - by1, 0.0)
    return inter, own + other - inter, hull


@triton.jit
def _ratio(part, whole, EXACT: tl.constexpr):
    """Return part / whole, 0 where there is no whole. Without EXACT, within 2 ulp and without the call that ends a slow
    division: for kernels that keep many registers alive around it.
    """
    safe = tl.where(whole > 0, whole, 1.0)
    ratio = tl.div_rn(part, safe) if EXACT else part / safe
    return tl.where(whole > 0, ratio, 0.0)


@triton.jit
def overlap_terms(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, EXACT: tl.constexpr):
    """Return IoU and GIoU of broadcast pairs of boxes; a union or hull without area gives 0, NaN gives NaN."""
    inter, union, hull = areas(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
    iou = tl.where(union != union, union, _ratio(inter, union, EXACT))
    return iou, iou - _ratio(hull - union, hull, EXACT)


@triton.jit
def corner_distance(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Return the sum of the four absolute corner differences."""
    return tl.abs(ax1 - bx1) + tl.abs(ay1 - by1) + tl.abs(ax2 - bx2) + tl.abs(ay2 - by2)


@triton.jit
def _larger_share(a, b):
    """Return which share of the gradient of max(a, b) is a's: ties share it evenly."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def _axis_gradient(a1, a2, b1, b2, a_other, shared_other, around_other, by_inter, by_union, by_hull, by_l1):
    """Return the gradients of a1 and a2, given what the three areas gain per unit and their sides along the other axis.

    A side of exactly 0 still passes its gradient, as torch's clamp does.
    """
    own = by_union * a_other * tl.where(a2 - a1 >= 0, 1.0, 0.0)
    shared = by_inter * shared_other * tl.where(tl.minimum(a2, b2) - tl.maximum(a1, b1) >= 0, 1.0, 0.0)
    around = by_hull * around_other * tl.where(tl.maximum(a2, b2) - tl.minimum(a1, b1) >= 0, 1.0, 0.0)
    low, high = _larger_share(a1, b1), _larger_share(a2, b2)
    first = -own - shared * low - around * (1.0 - low) + by_l1 * (2.0 * low - 1.0)
    second = own + shared * (1.0 - high) + around * high + by_l1 * (2.0 * high - 1.0)
    return first, second


@triton.jit
def box_gradient(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, by_iou, by_giou, by_l1):
    """Return the gradient of the four corners of box a, given those of the pair's IoU, GIoU and corner distance.

    With intersection I, union U = A + B - I and hull C: IoU = I / U and GIoU = I / U + U / C - 1.
    """
    inter, union, hull = areas(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
    per_union = tl.where(union > 0, 1.0 / tl.where(union > 0, union, 1.0), 0.0)
    per_hull = tl.where(hull > 0, 1.0 / tl.where(hull > 0, hull, 1.0), 0.0)
    by_ratio = (by_iou + by_giou) * per_union
    by_union = by_giou * per_hull - by_ratio * inter * per_union
    by_hull = -by_giou * union * per_hull * per_hull
    by_inter = by_ratio - by_union
    a_width, a_height = tl.maximum(ax2 - ax1, 0.0), tl.maximum(ay2 - ay1, 0.0)
    shared_width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    shared_height = tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    around_width = tl.maximum(tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1), 0.0)
    around_height = tl.maximum(tl.maximum(ay2, by2) - tl.minimum(ay1, by1), 0.0)
    x1, x2 = _axis_gradient(
        ax1, ax2, bx1, bx2, a_height, shared_height, around_height, by_inter, by_union, by_hull, by_l1
    )
    y1, y2 = _axis_gradient(ay1, ay2, by1, by2, a_width, shared_width, around_width, by_inter, by_union, by_hull, by_l1)
    return x1, y1, x2, y2


@triton.jit
def _load_gradients(grad_ptr, pairs, mask, GIOU_ONLY: tl.constexpr):
    """Load the gradients of IoU, GIoU and corner distance of pairs; an op of GIoU alone has one per pair."""
    if GIOU_ONLY:
        by_giou = tl.load(grad_ptr + pairs, mask=mask, other=0.0)
        by_iou = by_giou * 0.0
        by_l1 = by_iou
    else:
        by_iou = tl.load(grad_ptr + pairs * 3, mask=mask, other=0.0)
        by_giou = tl.load(grad_ptr + pairs * 3 + 1, mask=mask, other=0.0)
        by_l1 = tl.load(grad_ptr + pairs * 3 + 2, mask=mask, other=0.0)
    return by_iou, by_giou, by_l1


@triton.jit
def _store_terms(out_ptr, pairs, mask, a, b, GIOU_ONLY: tl.constexpr):
    iou, giou = overlap_terms(*a, *b, True)
    if GIOU_ONLY:
        tl.store(out_ptr + pairs, giou, mask=mask)
    else:
        tl.store(out_ptr + pairs * 3, iou, mask=mask)
        tl.store(out_ptr + pairs * 3 + 1, giou, mask=mask)
        tl.store(out_ptr + pairs * 3 + 2, corner_distance(*a, *b), mask=mask)


@triton.jit
def _store_boxes(ptr, rows, mask, x1, y1, x2, y2):
    corner = ptr + rows * 4
    tl.store(corner, x1, mask=mask)
    tl.store(corner + 1, y1, mask=mask)
    tl.store(corner + 2, x2, mask=mask)
    tl.store(corner + 3, y2, mask=mask)


@triton.jit
def _store_rows(ptr, rows, mask, x1, y1, x2, y2):
    """Store what `_store_boxes` does for rows of one axis, a box at a time."""
    boxes = tl.join(tl.join(x1, x2), tl.join(y1, y2)).reshape(rows.shape[0], 4)  # corner first, then axis
    corners = tl.arange(0, 4)
    tl.store(ptr + rows[:, None] * 4 + corners[None, :], boxes.to(ptr.dtype.element_ty), mask=mask[:, None])


@triton.jit(do_not_specialize=["num_pairs"])
def aligned_forward_kernel(pred_ptr, target_ptr, out_ptr, num_pairs, GIOU_ONLY: tl.constexpr, BLOCK: tl.constexpr):
    """Score BLOCK pairs."""
    pairs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = pairs < num_pairs
    _store_terms(
        out_ptr, pairs, mask, _load_rows(pred_ptr, pairs, mask), _load_rows(target_ptr, pairs, mask), GIOU_ONLY
    )


@triton.jit(do_not_specialize=["num_pairs"])
def aligned_backward_kernel(
    pred_ptr, target_ptr, grad_ptr, grad_pred_ptr, grad_target_ptr, num_pairs,
    GIOU_ONLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write both gradients of BLOCK pairs."""
    pairs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = pairs < num_pairs
    pred, target = _load_rows(pred_ptr, pairs, mask), _load_rows(target_ptr, pairs, mask)
    by_iou, by_giou, by_l1 = _load_gradients(grad_ptr, pairs, mask, GIOU_ONLY)
    _store_rows(grad_pred_ptr, pairs, mask, *box_gradient(*pred, *target, by_iou, by_giou, by_l1))
    _store_rows(grad_target_ptr, pairs, mask, *box_gradient(*target, *pred, by_iou, by_giou, by_l1))


@triton.jit
def _spans(rows, mask, problem_ptr, own_offsets_ptr, other_offsets_ptr, num_own, num_other, RAGGED: tl.constexpr):
    """Return, for rows of one set: where their problem begins in it, and where it begins and ends in the other set.

    Ragged: from the problem of each row and the offsets, which never lead outside the other set. Otherwise every
    problem has num_own and num_other boxes.
    """
    if RAGGED:
        problem = tl.load(problem_ptr + rows, mask=mask, other=0)
        own_start = tl.load(own_offsets_ptr + problem, mask=mask, other=0)
        start = tl.maximum(tl.load(other_offsets_ptr + problem, mask=mask, other=0), 0)
        stop = tl.minimum(tl.load(other_offsets_ptr + problem + 1, mask=mask, other=0), num_other)
    else:
        problem = rows // num_own
        own_start = problem * num_own
        start = problem * num_other
        stop = start + num_other
    return own_start, start, stop


@triton.jit(do_not_specialize=["num_rows", "num_pred", "num_target", "width"])
def pairwise_forward_kernel(
    pred_ptr, target_ptr, out_ptr, problem_ptr, pred_offsets_ptr, target_offsets_ptr,
    num_rows, num_pred, num_target, width,
    RAGGED: tl.constexpr, GIOU_ONLY: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Score ROWS predicted boxes against COLS targets of their problems; columns past the last target get 0."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)  # [COLS] within each row's problem
    _, start, stop = _spans(
        rows, rows < num_rows, problem_ptr, pred_offsets_ptr, target_offsets_ptr, num_pred, num_target, RAGGED
    )
    others = start[:, None] + cols[None, :]  # [ROWS, COLS]
    inside = (rows < num_rows)[:, None] & (others < stop[:, None])
    pred = load_boxes(pred_ptr, rows[:, None], (rows < num_rows)[:, None] & (cols >= 0)[None, :])
    # Masked targets are points at the origin; their pairs are zeroed by zeroing the predicted box as well.
    ax1, ay1, ax2, ay2 = pred
    ax1, ay1 = tl.where(inside, ax1, 0.0), tl.where(inside, ay1, 0.0)
    ax2, ay2 = tl.where(inside, ax2, 0.0), tl.where(inside, ay2, 0.0)
    written = (rows < num_rows)[:, None] & (cols < width)[None, :]
    _store_terms(
        out_ptr, rows[:, None] * width + cols[None, :], written,
        (ax1, ay1, ax2, ay2), load_boxes(target_ptr, others, inside), GIOU_ONLY,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "num_own", "num_other", "width"])
def pairwise_backward_kernel(
    own_ptr, other_ptr, grad_ptr, grad_own_ptr, problem_ptr, own_offsets_ptr, other_offsets_ptr,
    num_rows, num_own, num_other, width,
    OWN_IS_PRED: tl.constexpr, RAGGED: tl.constexpr, GIOU_ONLY: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of ROWS boxes of one set: each sums over the other boxes of its problem, COLS at a time."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = rows < num_rows
    own_start, start, stop = _spans(
        rows, mask, problem_ptr, own_offsets_ptr, other_offsets_ptr, num_own, num_other, RAGGED
    )
    cols = tl.arange(0, COLS)  # [COLS] within each row's problem
    x1, y1, x2, y2 = load_boxes(own_ptr, rows[:, None], mask[:, None] & (cols >= 0)[None, :])  # [ROWS, COLS]
    gx1 = tl.zeros([ROWS, COLS], tl.float32)
    gy1, gx2, gy2 = gx1, gx1, gx1
    for first in range(0, tl.max(stop - start, 0), COLS):
        others = start[:, None] + first + cols[None, :]  # [ROWS, COLS]
        inside = mask[:, None] & (others < stop[:, None])
        if OWN_IS_PRED:
            column = first + cols[None, :]
            pairs = rows[:, None] * width + column
        else:
            column = (rows - own_start)[:, None]
            pairs = others * width + column
        by_iou, by_giou, by_l1 = _load_gradients(grad_ptr, pairs, inside & (column >= 0) & (column < width), GIOU_ONLY)
        bx1, by1, bx2, by2 = load_boxes(other_ptr, others, inside)
        dx1, dy1, dx2, dy2 = box_gradient(x1, y1, x2, y2, bx1, by1, bx2, by2, by_iou, by_giou, by_l1)
        gx1, gy1, gx2, gy2 = gx1 + dx1, gy1 + dy1, gx2 + dx2, gy2 + dy2
    _store_boxes(grad_own_ptr, rows, mask, tl.sum(gx1, 1), tl.sum(gy1, 1), tl.sum(gx2, 1), tl.sum(gy2, 1))
