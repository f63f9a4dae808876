// The four Unicode normal forms. Text that is already normal is copied in runs; only the few code points around a
// decomposable or combining one take the slow path, and that path is O(n log n) in a run of combining marks.
#pragma once
#include <string>
#include <string_view>

namespace dg::unicode {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

std::string normalize(std::string_view utf8, NormalForm form);

}  // namespace dg::unicode
