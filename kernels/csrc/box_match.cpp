// CPU ops of the room box_match, on torch's stable ABI: one binary serves torch 2.11 and later.
//
// Offsets and counts are checked by the Python side; problems are shared out over torch's own threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "assignment.h"

namespace {

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

double pair_cost(const Box& p, const Box& t, int64_t cost, double diagonal) {
  const double inter = std::max(std::min(p.x2, t.x2) - std::max(p.x1, t.x1), 0.0) *
                       std::max(std::min(p.y2, t.y2) - std::max(p.y1, t.y1), 0.0);
  const double hull = std::max(std::max(p.x2, t.x2) - std::min(p.x1, t.x1), 0.0) *
                      std::max(std::max(p.y2, t.y2) - std::min(p.y1, t.y1), 0.0);
  const double total = p.area() + t.area() - inter;
  const double iou = total > 0.0 ? inter / total : 0.0;
  if (cost == kIou) return 1.0 - iou;
  const double giou = iou - (hull > 0.0 ? (hull - total) / hull : 0.0);
  if (cost == kOverlap) return 1.0 - (iou + std::max(giou, 0.0)) / 2.0;
  if (cost == kGiou) return 1.0 - giou;
  const double l1 = std::fabs(p.x1 - t.x1) + std::fabs(p.y1 - t.y1) + std::fabs(p.x2 - t.x2) + std::fabs(p.y2 - t.y2);
  return kL1Weight * l1 / (2.0 * diagonal) + kGiouWeight * (1.0 - giou);
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
      double* filled = solver.costs(std::min(rows, cols), std::max(rows, cols));
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; ++j) filled[flip ? j * rows + i : i * cols + j] = matrix[i * width + j];
      }
      const auto& found = solver.solve();
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
    for (int64_t b = begin; b < end; ++b) {
      const int64_t p0 = p_start[b], t0 = t_start[b];
      const int64_t num_pred = p_start[b + 1] - p0, num_truth = t_start[b + 1] - t0;
      std::fill(out + p0, out + p0 + num_pred, -1);
      if (num_pred == 0 || num_truth == 0) continue;
      const bool flip = num_pred > num_truth;
      double* filled = solver.costs(std::min(num_pred, num_truth), std::max(num_pred, num_truth));
      for (int64_t i = 0; i < num_pred; ++i) {
        for (int64_t j = 0; j < num_truth; ++j) {
          const Box &a = p[p0 + i], &c = t[t0 + j];
          const bool allowed = a.finite() && c.finite() && (!use_labels || p_label[p0 + i] == t_label[t0 + j]);
          filled[flip ? j * num_pred + i : i * num_truth + j] =
              allowed ? pair_cost(a, c, cost, diagonals[b]) : std::numeric_limits<double>::infinity();
        }
      }
      const auto& found = solver.solve();
      for (int64_t k = 0; k < static_cast<int64_t>(found.size()); ++k) {
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
