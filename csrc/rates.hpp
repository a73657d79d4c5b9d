// Speed of the inner loops against that of bare multiply-adds, both measured here without any Python in between.
#pragma once

#include <cstdint>

#include "recurrence.hpp"

namespace pyassemble {

// Float64 multiply-adds per second on one core; each lane counts.
double multiply_add_rate(double seconds, Workspace& workspace);

// Cells of the recurrence per second on a dense random matrix. A cell is one (k, i, j): n (n + 1) / 2 * m of them.
double recurrence_rate(std::int32_t targets, std::int32_t sources, Arithmetic arithmetic, double seconds, Workspace& workspace);

}  // namespace pyassemble
