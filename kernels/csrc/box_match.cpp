// CPU ops of the room box_match, on torch's stable ABI: one binary serves torch 2.11 and later.
//
// Offsets and counts are checked by the Python side; problems are shared out over torch's own threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>

#include "assignment.h"

namespace {

using medmo::kInfinity;
using torch::stable::Tensor;

// Order of COSTS in kernels/medmo_kernels/box_match/reference.py.
enum Cost : int64_t { kOverlap = 0, kIou = 1, kGiou = 2, kMedmo = 3 };

constexpr double kL1Weight = 5.0, kGiouWeight = 2.0;

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

struct Box {
  double x1, y1, x2, y2;

  bool finite() const { return std::isfinite(x1) && std::isfinite(y1) && std::isfinite(x2) && std::isfinite(y2); }
  double area() const { return std::max(x2 - x1, 0.0) * std::max(y2 - y1, 0.0); }
};

// Boxes of one set, corner by corner. One that is not finite is put at the origin and marked.
struct Columns {
  std::vector<double> x1, y1, x2, y2, area, forbidden;

  void fill(const Box* boxes, int64_t count) {
    for (auto* part : {&x1, &y1, &x2, &y2, &area, &forbidden}) part->assign(medmo::padded(count), 0.0);
    for (int64_t j = 0; j < count; ++j) {
      const Box& box = boxes[j];
      if (!box.finite()) {
        forbidden[j] = kInfinity;
        continue;
      }
      x1[j] = box.x1, y1[j] = box.y1, x2[j] = box.x2, y2[j] = box.y2, area[j] = box.area();
    }
  }
};

template <Cost cost>
MEDMO_INLINE void fill_row(const Box& box, const Columns& columns, double per_l1, double* out, int64_t width) {
  using namespace medmo;
  const Lanes zero = all(0.0), one = all(1.0), area = all(box.area());
  const Lanes ax1 = all(box.x1), ay1 = all(box.y1), ax2 = all(box.x2), ay2 = all(box.y2);
  for (int64_t j = 0; j < width; j += kLanes) {
    const Lanes x1 = load(&columns.x1[j]), y1 = load(&columns.y1[j]);
    const Lanes x2 = load(&columns.x2[j]), y2 = load(&columns.y2[j]);
    const Lanes inter = larger(smaller(ax2, x2) - larger(ax1, x1), zero) *
                        larger(smaller(ay2, y2) - larger(ay1, y1), zero);
    const Lanes hull = larger(larger(ax2, x2) - smaller(ax1, x1), zero) *
                       larger(larger(ay2, y2) - smaller(ay1, y1), zero);
    const Lanes total = area + load(&columns.area[j]) - inter;
    const Lanes iou = inter / (total > zero ? total : one);
    const Lanes giou = iou - (hull > zero ? hull - total : zero) / (hull > zero ? hull : one);
    Lanes paid = 1.0 - iou;
    if constexpr (cost == kOverlap) paid = 1.0 - (iou + larger(giou, zero)) * 0.5;
    if constexpr (cost == kGiou) paid = 1.0 - giou;
    if constexpr (cost == kMedmo) {
      const Lanes l1 = magnitude(ax1 - x1) + magnitude(ay1 - y1) + magnitude(ax2 - x2) + magnitude(ay2 - y2);
      paid = kL1Weight * l1 / per_l1 + kGiouWeight * (1.0 - giou);
    }
    paid += load(&columns.forbidden[j]);
    store(out + j, paid < kInfinity ? paid : all(kInfinity));  // NaN, of areas that overflow, becomes infinity
  }
}

// Writes the costs of one box against all columns; per_l1 divides the corner distance.
MEDMO_WIDEST void cost_row(const Box& box, const Columns& columns, int64_t cost, double per_l1, double* out,
                           int64_t width) {
  switch (cost) {
    case kOverlap:
      return fill_row<kOverlap>(box, columns, per_l1, out, width);
    case kIou:
      return fill_row<kIou>(box, columns, per_l1, out, width);
    case kGiou:
      return fill_row<kGiou>(box, columns, per_l1, out, width);
    default:
      return fill_row<kMedmo>(box, columns, per_l1, out, width);
  }
}

// cost (B, R, C) float64, num_rows and num_cols (B,) int64 -> (B, R) int64 column of each row, or -1.
Tensor assign(Tensor cost, Tensor num_rows, Tensor num_cols) {
  const int64_t problems = cost.sizes()[0], height = cost.sizes()[1], width = cost.sizes()[2];
  Tensor result = torch::stable::new_empty(num_rows, {problems, height});
  const double* costs = data<double>(cost);
  const int64_t *rows_of = data<int64_t>(num_rows), *cols_of = data<int64_t>(num_cols);
  int64_t* out = static_cast<int64_t*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, problems, 1, [&](int64_t begin, int64_t end) {
    medmo::Assignment solver;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t rows = rows_of[b], cols = cols_of[b];
      const double* matrix = costs + b * height * width;
      int64_t* match = out + b * height;
      std::fill(match, match + height, -1);
      if (rows == 0 || cols == 0) continue;
      const bool flip = rows > cols;
      solver.resize(std::min(rows, cols), std::max(rows, cols));
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; ++j) {
          const double paid = matrix[i * width + j];
          (flip ? solver.row(j)[i] : solver.row(i)[j]) = std::isfinite(paid) ? paid : kInfinity;
        }
      }
      const auto& found = medmo::solve(solver);
      for (int64_t k = 0; k < static_cast<int64_t>(found.size()); ++k) {
        if (found[k] < 0) continue;
        if (flip) {
          match[found[k]] = k;
        } else {
          match[k] = found[k];
        }
      }
    }
  });
  return result;
}

// pred (P, 4) and truth (T, 4) float64, offsets (B + 1,) int64, labels (P,) and (T,) int64 where use_labels,
// diagonal (B,) float64 -> (P,) int64 row of truth, or -1.
Tensor box_match(Tensor pred, Tensor truth, Tensor pred_offsets, Tensor truth_offsets, Tensor pred_labels,
                 Tensor truth_labels, bool use_labels, Tensor diagonal, int64_t cost) {
  const int64_t problems = pred_offsets.sizes()[0] - 1;
  Tensor result = torch::stable::new_empty(pred_offsets, {pred.sizes()[0]});
  const Box *p = data<Box>(pred), *t = data<Box>(truth);
  const int64_t *p_start = data<int64_t>(pred_offsets), *t_start = data<int64_t>(truth_offsets);
  const int64_t *p_label = data<int64_t>(pred_labels), *t_label = data<int64_t>(truth_labels);
  const double* diagonals = data<double>(diagonal);
  int64_t* out = static_cast<int64_t*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, problems, 1, [&](int64_t begin, int64_t end) {
    medmo::Assignment solver;
    Columns columns;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t p0 = p_start[b], t0 = t_start[b];
      const int64_t num_pred = p_start[b + 1] - p0, num_truth = t_start[b + 1] - t0;
      std::fill(out + p0, out + p0 + num_pred, -1);
      if (num_pred == 0 || num_truth == 0) continue;
      // All costs are symmetric: the smaller set makes the rows.
      const bool flip = num_pred > num_truth;
      const int64_t num_rows = std::min(num_pred, num_truth), num_cols = std::max(num_pred, num_truth);
      const Box *rows = flip ? t + t0 : p + p0, *cols = flip ? p + p0 : t + t0;
      solver.resize(num_rows, num_cols);
      columns.fill(cols, num_cols);
      for (int64_t i = 0; i < num_rows; ++i) {
        double* paid = solver.row(i);
        if (!rows[i].finite()) {
          std::fill(paid, paid + num_cols, kInfinity);
          continue;
        }
        cost_row(rows[i], columns, cost, 2.0 * diagonals[b], paid, solver.width());
        if (use_labels) {
          const int64_t label = flip ? t_label[t0 + i] : p_label[p0 + i];
          const int64_t* labels = flip ? p_label + p0 : t_label + t0;
          for (int64_t j = 0; j < num_cols; ++j) paid[j] = labels[j] == label ? paid[j] : kInfinity;
        }
      }
      const auto& found = medmo::solve(solver);
      for (int64_t k = 0; k < num_rows; ++k) {
        if (found[k] < 0) continue;
        if (flip) {
          out[p0 + found[k]] = t0 + k;
        } else {
          out[p0 + k] = t0 + found[k];
        }
      }
    }
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY(medmo_native, m) {
  m.def("assign(Tensor cost, Tensor num_rows, Tensor num_cols) -> Tensor");
  m.def(
      "box_match(Tensor pred, Tensor truth, Tensor pred_offsets, Tensor truth_offsets, Tensor pred_labels, "
      "Tensor truth_labels, bool use_labels, Tensor diagonal, int cost) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(medmo_native, CPU, m) {
  m.impl("assign", TORCH_BOX(&assign));
  m.impl("box_match", TORCH_BOX(&box_match));
}
