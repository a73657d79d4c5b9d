// Which instruction set the inner loops use: the best that the processor offers, unless told otherwise.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace pyassemble {

// Narrowest first; the last is the default.
std::vector<const Kernels*> available_kernels();
const Kernels& active_kernels();
// Throws std::invalid_argument, naming those available, if `name` is not one of them.
void activate_kernels(const std::string& name);

}  // namespace pyassemble
