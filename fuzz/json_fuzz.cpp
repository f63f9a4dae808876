// Any bytes as JSON: the readers answer, what they accept survives being written and read again, and the event stream
// accepts the same texts as the tree. The shard index reader runs on the same input.
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "io/json_events.h"
#include "io/shard_index.h"

namespace {

class CountingListener : public dg::JsonListener {
 public:
  bool on(const dg::JsonEvent& event) override {
    using Kind = dg::JsonEvent::Kind;
    CHECK(!dg::describe(event).empty());
    depth_ += event.kind == Kind::kBeginObject || event.kind == Kind::kBeginArray;
    depth_ -= event.kind == Kind::kEndObject || event.kind == Kind::kEndArray;
    CHECK(depth_ >= 0);
    return depth_ <= 64 || fail("too deep");
  }

 private:
  int depth_ = 0;
};

void check_message(const dg::Error& error) {
  CHECK(error.message.starts_with("f: ") && error.message.find('\n') == std::string::npos && error.message.size() < 2000) << error.message;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  auto tree = dg::parse_json(text, "f");
  auto sorted = dg::parse_sorted_json(text, "f");
  CHECK(tree.ok() == sorted.ok());
  if (tree.ok()) {
    for (int indent : {-1, 2}) {
      std::string written = dg::dump_json_python(*tree, indent);
      auto again = dg::parse_json(written, "f");
      CHECK(again.ok()) << again.error().message;
      CHECK(dg::dump_json_python(*again, indent) == written);
    }
  } else {
    check_message(tree.error());
  }

  CountingListener listener;
  auto streamed = dg::stream_json(text, "f", listener);
  if (!streamed.ok()) check_message(streamed.error());
  CHECK(streamed.ok() == tree.ok()) << (tree.ok() ? streamed.error().message : "");

  auto index = dg::parse_shard_index(text, "f");
  if (!index.ok()) {
    check_message(index.error());
    return 0;
  }
  for (size_t i = 0; i < index->weight_map.size(); i++) {
    const auto& entry = index->weight_map[i];
    CHECK(entry.file >= 0 && static_cast<size_t>(entry.file) < index->files.size());
    CHECK(i == 0 || index->weight_map[i - 1].tensor < entry.tensor);
  }
  for (const std::string& file : index->files)
    CHECK(!file.empty() && file[0] != '/' && file != ".." && !file.starts_with("../") && file.find("/../") == std::string::npos) << file;
  dg::find_missing_shard(index->files);
  return 0;
}
