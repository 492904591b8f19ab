// Optimal one-to-one assignment by shortest augmenting paths with potentials (Jonker and Volgenant 1987).
//
// The same definition as kernels/medmo_kernels/box_match/reference.py: as many allowed pairs as possible, and of those
// the cheapest; a cost that is not finite forbids its pair. A solver belongs to one thread and keeps its scratch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace medmo {

class Assignment {
 public:
  // Room for the costs of a problem of `rows` x `cols`, row by row; rows <= cols. Filled by the caller.
  double* costs(int64_t rows, int64_t cols) {
    rows_ = rows;
    cols_ = cols;
    cost_.resize(static_cast<size_t>(rows * cols));
    return cost_.data();
  }

  // Solves the problem whose costs were filled in. The result is the column of each row, -1 where it has none.
  const std::vector<int64_t>& solve() {
    match_.assign(rows_, -1);
    owner_.assign(cols_, -1);
    row_price_.assign(rows_, 0.0);
    col_price_.assign(cols_, 0.0);
    distance_.resize(cols_);
    via_.resize(cols_);
    order_.resize(cols_);
    const double limit = replace_forbidden();
    for (int64_t row = 0; row < rows_; ++row) augment(row);
    for (int64_t row = 0; row < rows_; ++row) {
      if (cost_[row * cols_ + match_[row]] >= limit) match_[row] = -1;
    }
    return match_;
  }

 private:
  // Shifts the costs to start at 0 and gives forbidden pairs a price above any set of allowed ones.
  double replace_forbidden() {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (double c : cost_) {
      if (std::isfinite(c)) {
        low = std::min(low, c);
        high = std::max(high, c);
      }
    }
    const bool any = low <= high;
    const double forbidden = any ? (high - low) * static_cast<double>(rows_ + 1) + 1.0 : 1.0;
    for (double& c : cost_) c = std::isfinite(c) ? c - low : forbidden;
    return forbidden;
  }

  // Gives `start` a column along the cheapest path of reassignments.
  void augment(int64_t start) {
    std::fill(distance_.begin(), distance_.end(), std::numeric_limits<double>::infinity());
    for (int64_t j = 0; j < cols_; ++j) order_[j] = j;
    int64_t settled = 0;  // order_[0 .. settled) are columns whose shortest distance is known
    int64_t row = start, sink = -1;
    double reach = 0.0;
    while (true) {
      const double base = reach - row_price_[row];
      const double* costs = cost_.data() + row * cols_;
      int64_t nearest = settled;
      double shortest = std::numeric_limits<double>::infinity();
      for (int64_t k = settled; k < cols_; ++k) {
        const int64_t j = order_[k];
        const double longer = base + costs[j] - col_price_[j];
        if (longer < distance_[j]) {
          distance_[j] = longer;
          via_[j] = row;
        }
        // A free column at the same distance ends the search.
        if (distance_[j] < shortest || (distance_[j] == shortest && owner_[j] < 0)) {
          shortest = distance_[j];
          nearest = k;
        }
      }
      std::swap(order_[settled], order_[nearest]);
      const int64_t column = order_[settled];
      reach = shortest;
      if (owner_[column] < 0) {
        sink = column;
        break;
      }
      ++settled;
      row = owner_[column];
    }
    row_price_[start] += reach;
    for (int64_t k = 0; k < settled; ++k) {
      const int64_t j = order_[k];
      row_price_[owner_[j]] += reach - distance_[j];
      col_price_[j] -= reach - distance_[j];
    }
    for (int64_t column = sink;;) {
      const int64_t taker = via_[column];
      owner_[column] = taker;
      std::swap(column, match_[taker]);
      if (taker == start) break;
    }
  }

  int64_t rows_ = 0, cols_ = 0;
  std::vector<double> cost_, row_price_, col_price_, distance_;
  std::vector<int64_t> match_, owner_, via_, order_;
};

}  // namespace medmo
