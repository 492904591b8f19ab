// Optimal one-to-one assignment by shortest augmenting paths with prices (Jonker and Volgenant 1987).
//
// The same definition as kernels/medmo_kernels/box_match/reference.py: as many allowed pairs as possible, and of those
// the cheapest; a cost of infinity forbids its pair. A solver belongs to one thread and keeps its scratch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.h"

namespace medmo {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Returns the least of values[0 .. width).
MEDMO_INLINE double least(const double* values, int64_t width) {
  Lanes lowest = all(kInfinity);
  for (int64_t j = 0; j < width; j += kLanes) lowest = smaller(load(values + j), lowest);
  return least(lowest);
}

// Shortens the distances of open columns by way of one row and returns the least of them; closed is 0, or infinity.
MEDMO_INLINE double relax(const double* row, const double* price, const double* closed, double base, double way,
                                 double* distance, double* via, int64_t width) {
  Lanes lowest = all(kInfinity);
  for (int64_t j = 0; j < width; j += kLanes) {
    const Lanes shut = load(closed + j), before = load(distance + j);
    const Lanes longer = base + (load(row + j) - load(price + j)) + shut;
    const Lanes nearest = smaller(longer, before);
    store(distance + j, nearest);
    store(via + j, longer < before ? all(way) : load(via + j));
    lowest = smaller(nearest + shut, lowest);
  }
  return least(lowest);
}

// Returns the least rank of the columns whose values + closed equal `wanted`.
MEDMO_INLINE double least_rank(const double* values, const double* closed, const double* rank, double wanted,
                                      int64_t width) {
  Lanes lowest = all(kInfinity);
  for (int64_t j = 0; j < width; j += kLanes) {
    lowest = smaller(load(values + j) + load(closed + j) == wanted ? load(rank + j) : all(kInfinity), lowest);
  }
  return least(lowest);
}

// Subtracts what each column's distance lacks of `reach` from its price.
MEDMO_INLINE void lower_prices(const double* distance, double reach, double* price, int64_t width) {
  for (int64_t j = 0; j < width; j += kLanes) {
    store(price + j, load(price + j) - larger(reach - load(distance + j), all(0.0)));
  }
}

// Shifts costs by `low`; infinity becomes `forbidden`.
MEDMO_INLINE void shift(double* costs, double low, double forbidden, int64_t count) {
  for (int64_t k = 0; k < count; k += kLanes) {
    const Lanes cost = load(costs + k);
    store(costs + k, cost < kInfinity ? cost - low : all(forbidden));
  }
}

// Returns the largest finite of values[0 .. width), or -infinity.
MEDMO_INLINE double most(const double* values, int64_t width) {
  Lanes lowest = all(kInfinity);
  for (int64_t j = 0; j < width; j += kLanes) {
    const Lanes value = load(values + j);
    lowest = smaller(value < kInfinity ? -value : all(kInfinity), lowest);
  }
  return -least(lowest);
}

class Assignment {
 public:
  // Makes room for a problem of rows <= cols. Rows lie width() apart; the caller fills their first `cols` costs.
  void resize(int64_t rows, int64_t cols) {
    rows_ = rows;
    cols_ = cols;
    width_ = padded(cols);
    if (static_cast<int64_t>(cost_.size()) < rows * width_) cost_.resize(rows * width_);
  }
  int64_t width() const { return width_; }
  double* row(int64_t index) { return cost_.data() + index * width_; }

  // Solves the problem whose costs were filled in. The result is the column of each row, -1 where it has none.
  MEDMO_INLINE const std::vector<int64_t>& solve() {
    match_.assign(rows_, -1);
    owner_.assign(cols_, -1);
    price_.assign(width_, 0.0);
    rank_.resize(width_);
    for (int64_t j = 0; j < width_; ++j) rank_[j] = static_cast<double>(j);
    closed_.resize(width_);
    distance_.resize(width_);
    via_.resize(width_);
    const double forbidden = replace_forbidden();
    for (int64_t i = 0; i < rows_; ++i) augment(i);
    for (int64_t i = 0; i < rows_; ++i) {
      if (row(i)[match_[i]] >= forbidden) match_[i] = -1;
    }
    return match_;
  }

 private:
  // Shifts the costs to start at 0 and gives forbidden pairs a price above any set of allowed ones.
  MEDMO_INLINE double replace_forbidden() {
    double low = kInfinity, high = -kInfinity;
    for (int64_t i = 0; i < rows_; ++i) {
      double* costs = row(i);
      std::fill(costs + cols_, costs + width_, kInfinity);
      low = std::min(low, least(costs, width_));
      high = std::max(high, most(costs, width_));
    }
    const bool any = low <= high;
    const double forbidden = any ? (high - low) * static_cast<double>(rows_ + 1) + 1.0 : 1.0;
    if (!any) low = 0.0;
    shift(cost_.data(), low, forbidden, rows_ * width_);
    return forbidden;
  }

  MEDMO_INLINE void give(int64_t column, int64_t taker) {
    owner_[column] = taker;
    match_[taker] = column;
    rank_[column] = static_cast<double>(column + kOwned);
  }

  // Gives `start` a column along the cheapest path of reassignments.
  MEDMO_INLINE void augment(int64_t start) {
    std::fill(distance_.begin(), distance_.end(), kInfinity);
    std::fill(closed_.begin(), closed_.begin() + cols_, 0.0);
    std::fill(closed_.begin() + cols_, closed_.end(), kInfinity);
    int64_t i = start, column = -1;
    double reach = 0.0, base = 0.0;  // a constant added to all distances of `start` changes nothing
    while (true) {
      reach = relax(row(i), price_.data(), closed_.data(), base, static_cast<double>(i), distance_.data(), via_.data(),
                    width_);
      const auto rank = static_cast<int64_t>(
          least_rank(distance_.data(), closed_.data(), rank_.data(), reach, width_));
      column = rank >= kOwned ? rank - kOwned : rank;
      i = owner_[column];
      if (i < 0) break;
      closed_[column] = kInfinity;
      base = reach - (row(i)[column] - price_[column]);
    }
    lower_prices(distance_.data(), reach, price_.data(), width_);
    while (true) {
      const auto taker = static_cast<int64_t>(via_[column]);
      const int64_t given_up = match_[taker];
      give(column, taker);
      if (taker == start) break;
      column = given_up;
    }
  }

  static constexpr int64_t kOwned = int64_t{1} << 40;  // added to the rank of columns with an owner: free ones first

  int64_t rows_ = 0, cols_ = 0, width_ = 0;
  // Column numbers and ways are kept as float64 beside the distances, so that one loop handles both.
  std::vector<double> cost_, price_, closed_, distance_, via_, rank_;
  std::vector<int64_t> match_, owner_;
};

MEDMO_WIDEST inline const std::vector<int64_t>& solve(Assignment& problem) { return problem.solve(); }

}  // namespace medmo
