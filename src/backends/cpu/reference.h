// The reference backend: plain loops that define what every op computes. Slow, single-threaded, any format and stride.
#pragma once
#include <memory>

#include "device/backend.h"

namespace dg {

std::unique_ptr<Backend> make_reference_backend();

}  // namespace dg
